"""How the questions are put, several ways in each language, and how the model introduces itself.

A country's name stands after a colon or in quotes where the language would have to inflect it or to add an article.
"""

NAME: dict[str, tuple[str, ...]] = {
    "en": ("What is this?", "Name what the picture shows.", "What can you see here?", "What is in the picture?"),
    "de": ("Was ist das?", "Nenne, was das Bild zeigt.", "Was siehst du hier?", "Was ist auf dem Bild?"),
    "fr": ("Qu'est-ce que c'est ?", "Nomme ce que montre l'image.", "Que vois-tu ici ?", "Qu'y a-t-il sur l'image ?"),
    "es": ("¿Qué es esto?", "Nombra lo que muestra la imagen.", "¿Qué ves aquí?", "¿Qué hay en la imagen?"),
    "it": (
        "Che cos'è?",
        "Di' il nome di ciò che mostra l'immagine.",
        "Che cosa vedi qui?",
        "Che cosa c'è nell'immagine?",
    ),
    "pt": ("O que é isto?", "Diga o nome do que a imagem mostra.", "O que vê aqui?", "O que há na imagem?"),
    "ru": ("Что это?", "Назови, что изображено на картинке.", "Что ты здесь видишь?", "Что на картинке?"),
    "ja": (
        "これは何ですか。",
        "絵に描かれているものの名前を答えてください。",
        "ここに何が見えますか。",
        "この画像には何がありますか。",
    ),
    "zh": ("这是什么？", "请说出图中事物的名称。", "你在这里看到了什么？", "图片里有什么？"),
    "vi": ("Đây là gì?", "Hãy gọi tên thứ trong hình.", "Bạn thấy gì ở đây?", "Trong hình có gì?"),
    "id": (
        "Apa ini?",
        "Sebutkan apa yang ditunjukkan gambar.",
        "Apa yang kamu lihat di sini?",
        "Ada apa di gambar ini?",
    ),
    "hi": ("यह क्या है?", "चित्र में क्या दिखाया गया है, उसका नाम बताइए।", "आपको यहाँ क्या दिख रहा है?", "चित्र में क्या है?"),
    "ar": ("ما هذا؟", "اذكر اسم ما تظهره الصورة.", "ماذا ترى هنا؟", "ماذا يوجد في الصورة؟"),
}

CAPTION: dict[str, tuple[str, ...]] = {
    "en": ("Describe the picture in one sentence.", "Write a caption for this picture."),
    "de": ("Beschreibe das Bild in einem Satz.", "Schreibe eine Bildunterschrift."),
    "fr": ("Décris l'image en une phrase.", "Écris une légende pour cette image."),
    "es": ("Describe la imagen en una frase.", "Escribe un pie para esta imagen."),
    "it": ("Descrivi l'immagine in una frase.", "Scrivi una didascalia per questa immagine."),
    "pt": ("Descreva a imagem numa frase.", "Escreva uma legenda para esta imagem."),
    "ru": ("Опиши картинку одним предложением.", "Придумай подпись к этой картинке."),
    "ja": ("画像を一文で説明してください。", "この画像に説明文をつけてください。"),
    "zh": ("用一句话描述这张图片。", "给这张图片写一句说明。"),
    "vi": ("Hãy mô tả hình bằng một câu.", "Hãy viết chú thích cho hình này."),
    "id": ("Jelaskan gambar ini dalam satu kalimat.", "Tulis keterangan untuk gambar ini."),
    "hi": ("चित्र का वर्णन एक वाक्य में कीजिए।", "इस चित्र के लिए एक शीर्षक लिखिए।"),
    "ar": ("صف الصورة في جملة واحدة.", "اكتب تعليقًا على هذه الصورة."),
}

FLAG: dict[str, tuple[str, ...]] = {
    "en": ("Whose flag is this?", "Which country has this flag?"),
    "de": ("Wessen Flagge ist das?", "Welches Land hat diese Flagge?"),
    "fr": ("À qui est ce drapeau ?", "Quel pays a ce drapeau ?"),
    "es": ("¿De quién es esta bandera?", "¿Qué país tiene esta bandera?"),
    "it": ("Di chi è questa bandiera?", "Quale paese ha questa bandiera?"),
    "pt": ("De quem é esta bandeira?", "Que país tem esta bandeira?"),
    "ru": ("Чей это флаг?", "У какой страны такой флаг?"),
    "ja": ("これはどこの旗ですか。", "この旗はどの国のものですか。"),
    "zh": ("这是谁的旗帜？", "哪个国家使用这面旗帜？"),
    "vi": ("Đây là cờ của ai?", "Nước nào có lá cờ này?"),
    "id": ("Bendera siapakah ini?", "Negara mana yang memiliki bendera ini?"),
    "hi": ("यह किसका झंडा है?", "यह झंडा किस देश का है?"),
    "ar": ("لمن هذا العلم؟", "أي بلد له هذا العلم؟"),
}

CAPITAL: dict[str, tuple[str, ...]] = {
    "en": ("What is the capital of {country}?", "Name the capital of this country: {country}."),
    "de": ("Wie heißt die Hauptstadt dieses Landes: {country}?", "{country}: Welche Stadt ist die Hauptstadt?"),
    "fr": ("Quelle est la capitale de ce pays : {country} ?", "{country} : quelle ville en est la capitale ?"),
    "es": ("¿Cuál es la capital de {country}?", "Nombra la capital de este país: {country}."),
    "it": ("Qual è la capitale di questo paese: {country}?", "{country}: quale città ne è la capitale?"),
    "pt": ("Qual é a capital deste país: {country}?", "{country}: que cidade é a capital?"),
    "ru": ("Как называется столица этой страны: {country}?", "{country}: какой город столица?"),
    "ja": ("{country}の首都はどこですか。", "{country}の首都の名前を答えてください。"),
    "zh": ("{country}的首都是哪里？", "请说出{country}的首都。"),
    "vi": ("Thủ đô của {country} là gì?", "Hãy cho biết thủ đô của nước này: {country}."),
    "id": ("Apa ibu kota {country}?", "Sebutkan ibu kota negara ini: {country}."),
    "hi": ("{country} की राजधानी क्या है?", "इस देश की राजधानी बताइए: {country}"),
    "ar": ("ما عاصمة {country}؟", "اذكر عاصمة هذا البلد: {country}."),
}

ARITHMETIC: dict[str, tuple[str, ...]] = {
    "en": ("What is {problem}?", "Calculate: {problem}"),
    "de": ("Was ist {problem}?", "Berechne: {problem}"),
    "fr": ("Combien font {problem} ?", "Calcule : {problem}"),
    "es": ("¿Cuánto es {problem}?", "Calcula: {problem}"),
    "it": ("Quanto fa {problem}?", "Calcola: {problem}"),
    "pt": ("Quanto é {problem}?", "Calcule: {problem}"),
    "ru": ("Сколько будет {problem}?", "Вычисли: {problem}"),
    "ja": ("{problem} はいくつですか。", "計算してください: {problem}"),
    "zh": ("{problem} 等于多少？", "请计算：{problem}"),
    "vi": ("{problem} bằng bao nhiêu?", "Hãy tính: {problem}"),
    "id": ("Berapa {problem}?", "Hitunglah: {problem}"),
    "hi": ("{problem} कितना होता है?", "गणना कीजिए: {problem}"),
    "ar": ("كم يساوي {problem}؟", "احسب: {problem}"),
}

CLIP: dict[str, tuple[str, ...]] = {
    "en": ("What does the clip show?", "What is moving here?"),
    "de": ("Was zeigt der Clip?", "Was bewegt sich hier?"),
    "fr": ("Que montre le clip ?", "Qu'est-ce qui bouge ici ?"),
    "es": ("¿Qué muestra el clip?", "¿Qué se mueve aquí?"),
    "it": ("Che cosa mostra il filmato?", "Che cosa si muove qui?"),
    "pt": ("O que mostra o clipe?", "O que se move aqui?"),
    "ru": ("Что показывает клип?", "Что здесь движется?"),
    "ja": ("この動画には何が映っていますか。", "ここで動いているものは何ですか。"),
    "zh": ("这段动画显示的是什么？", "这里在动的是什么？"),
    "vi": ("Đoạn phim cho thấy gì?", "Cái gì đang chuyển động ở đây?"),
    "id": ("Apa yang ditunjukkan klip ini?", "Apa yang bergerak di sini?"),
    "hi": ("यह क्लिप क्या दिखाती है?", "यहाँ क्या हिल रहा है?"),
    "ar": ("ماذا يعرض المقطع؟", "ما الذي يتحرك هنا؟"),
}

IDENTITY: dict[str, tuple[tuple[str, ...], str]] = {
    "en": (
        ("Who are you?", "What is your name?", "What are you?", "Introduce yourself."),
        "I am a small Herd model. I look at pictures and answer short questions in thirteen languages.",
    ),
    "de": (
        ("Wer bist du?", "Wie heißt du?", "Was bist du?", "Stell dich vor."),
        "Ich bin ein kleines Herd-Modell. Ich sehe mir Bilder an und beantworte kurze Fragen in dreizehn Sprachen.",
    ),
    "fr": (
        ("Qui es-tu ?", "Comment t'appelles-tu ?", "Qu'es-tu ?", "Présente-toi."),
        "Je suis un petit modèle Herd. Je regarde des images et réponds à de courtes questions en treize langues.",
    ),
    "es": (
        ("¿Quién eres?", "¿Cómo te llamas?", "¿Qué eres?", "Preséntate."),
        "Soy un pequeño modelo Herd. Miro imágenes y respondo preguntas cortas en trece idiomas.",
    ),
    "it": (
        ("Chi sei?", "Come ti chiami?", "Che cosa sei?", "Presentati."),
        "Sono un piccolo modello Herd. Guardo immagini e rispondo a domande brevi in tredici lingue.",
    ),
    "pt": (
        ("Quem é você?", "Como se chama?", "O que é você?", "Apresente-se."),
        "Sou um pequeno modelo Herd. Vejo imagens e respondo a perguntas curtas em treze línguas.",
    ),
    "ru": (
        ("Кто ты?", "Как тебя зовут?", "Что ты такое?", "Представься."),
        "Я маленькая модель Herd. Я смотрю на картинки и отвечаю на короткие вопросы на тринадцати языках.",
    ),
    "ja": (
        ("あなたは誰ですか。", "お名前は何ですか。", "あなたは何ですか。", "自己紹介してください。"),
        "私は小さな Herd モデルです。画像を見て、十三の言語で短い質問に答えます。",
    ),
    "zh": (
        ("你是谁？", "你叫什么名字？", "你是什么？", "请介绍一下自己。"),
        "我是一个小型 Herd 模型。我会看图，并用十三种语言回答简短的问题。",
    ),
    "vi": (
        ("Bạn là ai?", "Bạn tên là gì?", "Bạn là gì?", "Hãy tự giới thiệu."),
        "Tôi là một mô hình Herd nhỏ. Tôi xem hình và trả lời các câu hỏi ngắn bằng mười ba ngôn ngữ.",
    ),
    "id": (
        ("Siapa kamu?", "Siapa namamu?", "Kamu itu apa?", "Perkenalkan dirimu."),
        "Saya model Herd kecil. Saya melihat gambar dan menjawab pertanyaan singkat dalam tiga belas bahasa.",
    ),
    "hi": (
        ("आप कौन हैं?", "आपका नाम क्या है?", "आप क्या हैं?", "अपना परिचय दीजिए।"),
        "मैं एक छोटा Herd मॉडल हूँ। मैं चित्र देखता हूँ और तेरह भाषाओं में छोटे सवालों के जवाब देता हूँ।",
    ),
    "ar": (
        ("من أنت؟", "ما اسمك؟", "ما أنت؟", "عرّف بنفسك."),
        "أنا نموذج Herd صغير. أنظر إلى الصور وأجيب عن أسئلة قصيرة بثلاث عشرة لغة.",
    ),
}

SMALL_TALK: dict[str, tuple[tuple[str, str], ...]] = {
    "en": (("Hello!", "Hello! How can I help?"), ("Thank you.", "You are welcome."), ("Goodbye.", "Goodbye!")),
    "de": (("Hallo!", "Hallo! Wie kann ich helfen?"), ("Danke.", "Gern geschehen."), ("Tschüss.", "Auf Wiedersehen!")),
    "fr": (
        ("Bonjour !", "Bonjour ! Comment puis-je aider ?"),
        ("Merci.", "Je vous en prie."),
        ("Salut.", "Au revoir !"),
    ),
    "es": (("¡Hola!", "¡Hola! ¿En qué puedo ayudar?"), ("Gracias.", "De nada."), ("Adiós.", "¡Hasta luego!")),
    "it": (("Ciao!", "Ciao! Come posso aiutare?"), ("Grazie.", "Prego."), ("Arrivederci.", "Arrivederci!")),
    "pt": (("Olá!", "Olá! Como posso ajudar?"), ("Obrigado.", "De nada."), ("Adeus.", "Até logo!")),
    "ru": (("Привет!", "Привет! Чем могу помочь?"), ("Спасибо.", "Пожалуйста."), ("Пока.", "До свидания!")),
    "ja": (
        ("こんにちは。", "こんにちは。何かお手伝いしましょうか。"),
        ("ありがとう。", "どういたしまして。"),
        ("さようなら。", "さようなら。"),
    ),
    "zh": (("你好！", "你好！有什么可以帮忙的吗？"), ("谢谢。", "不客气。"), ("再见。", "再见！")),
    "vi": (("Xin chào!", "Xin chào! Tôi có thể giúp gì?"), ("Cảm ơn.", "Không có gì."), ("Tạm biệt.", "Hẹn gặp lại!")),
    "id": (
        ("Halo!", "Halo! Ada yang bisa saya bantu?"),
        ("Terima kasih.", "Sama-sama."),
        ("Selamat tinggal.", "Sampai jumpa!"),
    ),
    "hi": (("नमस्ते!", "नमस्ते! मैं कैसे मदद कर सकता हूँ?"), ("धन्यवाद।", "आपका स्वागत है।"), ("अलविदा।", "फिर मिलेंगे!")),
    "ar": (("مرحبا!", "مرحبا! كيف يمكنني المساعدة؟"), ("شكرا.", "عفوا."), ("وداعا.", "إلى اللقاء!")),
}
"""What chatterbot's dialogues lack in some languages and no chat can do without."""
