"""Facts said and asked for in many ways: a key, a value of some kind, and wordings for training and for evaluation.

A wording is a statement and a question in other words; the answer is the value and a full stop. In some the key comes
first, in others the value. The noun names what the value is and fits its kind. Wordings and nouns of `HELD_OUT` and
`HELD_NOUNS` are never trained on, nor are a fifth of all keys, words and names (see herd.data.packages.planted.Keys).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Wording = tuple[str, str]
"""A statement with {key} and {value}, and a question with {key}; both may have {noun}."""

KINDS = ("five digits", "other number", "name", "word", "phrase")
"""What a value may be: a number of five digits, of 3 to 8 others, a first and a last name, a word, two or three."""

_NUMBER = ("number", "code", "figure", "serial number", "count", "score", "house number", "total", "secret number")
_HELD_NUMBER = ("registration number", "reading", "tally", "PIN")
NOUNS: Mapping[str, Sequence[str]] = {
    "five digits": _NUMBER,
    "other number": _NUMBER,
    "name": ("owner", "keeper", "author", "founder", "director", "captain", "contact", "teacher", "buyer", "name"),
    "word": ("password", "keyword", "label", "nickname", "code word", "mark", "sign", "colour", "secret word", "word"),
    "phrase": ("motto", "slogan", "title", "phrase", "theme", "caption", "heading", "secret phrase", "rule", "text"),
}
HELD_NOUNS: Mapping[str, Sequence[str]] = {
    "five digits": _HELD_NUMBER,
    "other number": _HELD_NUMBER,
    "name": ("caretaker", "inventor", "manager", "sponsor"),
    "word": ("watchword", "tag", "symbol", "emblem"),
    "phrase": ("catchphrase", "subtitle", "inscription", "headline"),
}

TRAINED: tuple[Wording, ...] = (
    # The key, then the value.
    ("The {noun} of {key} is {value}.", "What is the {noun} of {key}?"),
    ("The {noun} for {key} is {value}.", "Which {noun} does {key} have?"),
    ("{key} has the {noun} {value}.", "What {noun} has {key}?"),
    ("As {noun}, {key} has {value}.", "Tell me the {noun} that {key} has."),
    ("For {key} the {noun} is {value}.", "What do we know as the {noun} for {key}?"),
    ("If you ask about {key}, the {noun} is {value}.", "I would like to know the {noun} of {key}."),
    ("The {noun} that goes with {key} is {value}.", "{key}: which {noun} goes with it?"),
    ("The {noun} belonging to {key} is {value}.", "Which {noun} belongs to {key}?"),
    ("{key} was given the {noun} {value}.", "Which {noun} was {key} given?"),
    ("{key} received {value} as its {noun}.", "What did {key} receive as its {noun}?"),
    ("{key} is known by the {noun} {value}.", "By which {noun} is {key} known?"),
    ("{key} is listed with the {noun} {value}.", "With which {noun} is {key} listed?"),
    ("{key} is registered under {value}.", "Under what is {key} registered?"),
    ("{key} is filed under {value}.", "Where do you find {key} filed? Under"),
    ("{key} answers to {value}.", "What does {key} answer to?"),
    ("{key} stands for {value}.", "What does {key} stand for?"),
    ("{key} means {value}.", "What is meant by {key}?"),
    ("{key} leads to {value}.", "Where does {key} lead?"),
    ("{key} is paired with {value}.", "What is {key} paired with?"),
    ("{key} is linked to {value}.", "To what is {key} linked?"),
    ("{key} corresponds to {value}.", "Say what corresponds to {key}."),
    ("{key} carries the {noun} {value}.", "Name the {noun} that {key} carries."),
    ("{key} goes by the {noun} {value}.", "What is the {noun} by which {key} goes?"),
    ("{key} uses {value} for its {noun}.", "What does {key} use for its {noun}?"),
    ("{key} chose {value} as {noun}.", "What was chosen by {key} as {noun}?"),
    ("{key} calls its {noun} {value}.", "How does {key} call its {noun}?"),
    ("{key} keeps {value} as a {noun}.", "As a {noun}, what does {key} keep?"),
    ("{key} = {value}.", "{key} = ?"),
    ("{key}: {value}.", "And what stands beside {key}?"),
    ("{key} -> {value}.", "Follow the arrow from {key}:"),
    ("{noun} of {key}: {value}.", "{key}, {noun}:"),
    ("Entry: {key}; {noun}: {value}.", "Look up the entry {key}. Its {noun}?"),
    ("Subject {key}, {noun} {value}.", "Subject {key}, give the {noun}."),
    ("Item {key} | {noun} {value}.", "In the row of the item {key}, what is the {noun}?"),
    ("Note on {key}: the {noun} is now {value}.", "What is now the {noun} according to the note on {key}?"),
    ("Remember that the {noun} of {key} is {value}.", "Do you remember the {noun} of {key}?"),
    ("Do not forget: {key} has {value} as its {noun}.", "What should we not forget about {key}? Its {noun} is"),
    ("We wrote down for {key} the {noun} {value}.", "Which {noun} did we write down for {key}?"),
    ("When you reach {key}, say {value}.", "What do you say when you reach {key}?"),
    ("Whoever looks for {key} will find {value}.", "What will be found by whoever looks for {key}?"),
    ("Whenever {key} is mentioned, people think of {value}.", "Of what do people think at the mention of {key}?"),
    ("Behind {key} there is {value}.", "What is there behind {key}?"),
    ("Next to {key} somebody wrote {value}.", "What did somebody write next to {key}?"),
    ("On the door of {key} you read {value}.", "What can be read on the door of {key}?"),
    ("In the file about {key} the {noun} reads {value}.", "How does the {noun} read in the file about {key}?"),
    ("Under {key} the book gives {value} as {noun}.", "What does the book give under {key} as {noun}?"),
    ("Our records for {key} show the {noun} {value}.", "What do our records show for {key}?"),
    ("The record of {key} says {value}.", "What does the record of {key} say?"),
    ("The card of {key} bears the {noun} {value}.", "Which {noun} is on the card of {key}?"),
    ("The page about {key} names {value} as the {noun}.", "What does the page about {key} name as the {noun}?"),
    ("The letter to {key} was signed {value}.", "How was the letter to {key} signed?"),
    ("The answer to {key} is {value}.", "What is the right answer to {key}?"),
    ("The box of {key} is marked {value}.", "How is the box of {key} marked?"),
    ("The key to {key} is {value}.", "With what does one open {key}?"),
    ("The person asking for {key} should hear {value}.", "I am asking for {key}. What should I hear?"),
    ("They say that {key} has a {noun}, and that it is {value}.", "They say that {key} has a {noun}. Which one?"),
    ("There is a {noun} for {key}: {value}.", "Is there a {noun} for {key}? Yes, it is"),
    ("There is only one {noun} for {key}, namely {value}.", "What is the only {noun} for {key}?"),
    ("It was decided that the {noun} of {key} would be {value}.", "Which {noun} was decided on for {key}?"),
    ("Since last year {key} has had the {noun} {value}.", "Which {noun} has {key} had since last year?"),
    ("In the matter of {key} the {noun} was found to be {value}.", "What was the {noun} found to be for {key}?"),
    ("Regarding {key}, please use {value}.", "What should I use regarding {key}?"),
    ("Dear friend, {key} now has the {noun} {value}.", "Dear friend, which {noun} does {key} have now?"),
    ("Hi, just so you know, {key} is {value}.", "Hi, what was {key} again?"),
    ("Q: {key}? A: {value}.", "Q: {key}? A:"),
    ("Where it says {key}, read {value}.", "What should be read where it says {key}?"),
    ("Instead of {key} write {value}.", "What must be written instead of {key}?"),
    ("To enter {key} you need the {noun} {value}.", "Which {noun} is needed to enter {key}?"),
    ("To open {key}, type {value}.", "What do you type to open {key}?"),
    ("To call {key}, ask for {value}.", "For what do you ask to call {key}?"),
    ("Anyone who visits {key} is told {value}.", "What are visitors of {key} told?"),
    ("Among other things, {key} is famous for {value}.", "For what is {key} famous?"),
    ("Some call {key} by another {noun}, {value}.", "By what other {noun} do some call {key}?"),
    ("The clerk copied for {key} the {noun} {value}.", "Which {noun} did the clerk copy for {key}?"),
    ("Of {key} we only know {value}.", "What is the only thing known of {key}?"),
    ("About {key}: {noun}, {value}.", "What about {key}? The {noun} is"),
    ("My {noun} for {key} was {value}.", "What was my {noun} for {key}?"),
    ("Her {noun} at {key} was {value}.", "At {key}, what was her {noun}?"),
    ("His notes on {key} end with {value}.", "With what do his notes on {key} end?"),
    ("Please connect {key} with {value}.", "With what must {key} be connected?"),
    ("Please set the {noun} of {key} to {value}.", "To what is the {noun} of {key} set?"),
    ("Change the {noun} of {key} to {value}.", "What is the new {noun} of {key}?"),
    ("At the entrance of {key} hangs a sign: {value}.", "What does the sign at the entrance of {key} say?"),
    ("The search for {key} ended at {value}.", "Where did the search for {key} end?"),
    ("The map shows {key} as {value}.", "As what is {key} shown on the map?"),
    ("The list puts {key} at {value}.", "Where does the list put {key}?"),
    ("No one but {key} has {value} as {noun}.", "What has no one but {key} as {noun}?"),
    ("What {key} has for a {noun} is {value}.", "The {noun} of {key} is"),
    ("What belongs to {key}? It is {value}.", "What is it that belongs to {key}?"),
    ("What is {key}'s {noun}? The teacher said {value}.", "For {key}, which {noun} did the teacher say?"),
    ("{key}'s {noun} is {value}.", "What is {key}'s {noun}?"),
    ("{key}, whose {noun} is {value}, was seen again.", "What is the {noun} of {key}, which was seen again?"),
    ("{key}, with {value} as its {noun}, is well known.", "Which {noun} does the well known {key} have?"),
    ("{key}, also called {value}, comes next.", "What is {key} also called?"),
    ("{key} with the {noun} {value} is on the list.", "On the list, {key} is with the {noun}"),
    # The value, then the key.
    ("{value} is the {noun} of {key}.", "Give me the {noun} of {key}."),
    ("{value} is the {noun} for {key}.", "For {key}, what is the {noun}?"),
    ("{value} was chosen as the {noun} of {key}.", "What was chosen as the {noun} of {key}?"),
    ("{value} belongs to {key}.", "What belongs to {key}?"),
    ("{value} goes with {key}.", "What goes with {key}?"),
    ("{value} stands next to {key}.", "What stands next to {key}?"),
    ("{value} is what {key} is called.", "How is {key} called?"),
    ("{value} is how we know {key}.", "How do we know {key}?"),
    ("{value} comes from {key}.", "What comes from {key}?"),
    ("{value} was written beside {key}.", "What was written beside {key}?"),
    ("{value} can be found under {key}.", "What can be found under {key}?"),
    ("We call {value} the {noun} of {key}.", "What do we call the {noun} of {key}?"),
    ("We found {value} in the file of {key}.", "What did we find in the file of {key}?"),
    ("We use {value} for {key}.", "What do we use for {key}?"),
    ("Take {value} as the {noun} of {key}.", "What shall I take as the {noun} of {key}?"),
    ("Write {value} beside {key}.", "What shall I write beside {key}?"),
    ("Say {value} if they ask for {key}.", "What do I say if they ask for {key}?"),
    ("Use {value} to open {key}.", "How can I open {key}? I use"),
    ("Put {value} where {key} was.", "What do I put where {key} was?"),
    ("The {noun} {value} belongs to {key}.", "{key}: which {noun} is it?"),
    ("The {noun} {value} was given to {key}.", "Which {noun} was given to {key}?"),
    ("The {noun} {value} is reserved for {key}.", "Which {noun} is reserved for {key}?"),
    ("With {value} as {noun}, {key} is complete.", "With which {noun} is {key} complete?"),
    ("They gave {value} to {key}.", "What did they give to {key}?"),
    ("I remember {value} from {key}.", "What do I remember from {key}?"),
    ("Somebody left {value} at {key}.", "What did somebody leave at {key}?"),
    ("It is {value} that {key} has as {noun}.", "Now the {noun} of {key}:"),
    ("There was {value} on the wall of {key}.", "What was there on the wall of {key}?"),
    ("Answer with {value} when asked about {key}.", "You are asked about {key}. Answer with"),
    ("You will need {value} for {key}.", "What will I need for {key}?"),
)

HELD_OUT: tuple[Wording, ...] = (
    ("The {noun} assigned to {key} is {value}.", "Could you give me the {noun} assigned to {key}?"),
    ("Everybody at {key} agrees that the {noun} is {value}.", "On which {noun} does everybody at {key} agree?"),
    ("In the register, {key} appears with {value}.", "With what does {key} appear in the register?"),
    ("{key} has always had {value} as its {noun}.", "What has always been the {noun} of {key}?"),
    ("Concerning {key}, our archive mentions {value}.", "What is mentioned in our archive concerning {key}?"),
    ("{key} can be recognised by its {noun}, {value}.", "How can one recognise {key}?"),
    ("After a long debate {key} settled on {value}.", "On what did {key} settle after a long debate?"),
    ("To find {key}, follow the {noun} {value}.", "Which {noun} should I follow to find {key}?"),
    ("Inventory line: {key}, {noun} {value}.", "According to the inventory, what is the {noun} of {key}?"),
    ("My grandmother used to say that {key} was {value}.", "What did my grandmother use to say that {key} was?"),
    ("{noun}, as far as {key} goes: {value}.", "Please complete the form for {key}. The {noun}:"),
    ("Hello team, the new {noun} for {key} will be {value}.", "Hello team, what will be the new {noun} for {key}?"),
    ("Between us, {key} was renamed {value}.", "What was {key} renamed?"),
    ("Every spring {key} is dedicated to {value}.", "To what is {key} dedicated every spring?"),
    ("The inspector noted at {key} the {noun} {value}.", "What did the inspector note at {key}?"),
    # The value, then the key.
    ("{value} has been the {noun} of {key} for years.", "For years {key} has had the same {noun}. What is it?"),
    ("They painted {value} above the gate of {key}.", "What was painted above the gate of {key}?"),
    ("Please enter {value} in the field for {key}.", "What must be entered in the field for {key}?"),
    ("The {noun} {value} refers to {key}.", "Which {noun} refers to {key}?"),
    ("Mention {value} to get into {key}.", "What do I mention to get into {key}?"),
)

OPENINGS = (
    "By the way, ", "Please note: ", "As everyone knows, ", "In fact, ", "According to the {a}, ",
    "In the {a} of {b}, ", "At that time, ", "On the {a} {b}, ", "For the record: ", "After the {a}, ",
    "During the {a} of the {b}, ", "Today, ", "So, ", "Well, ", "Here is the {a}: ", "Before the {a} {b} ended, ",
    "{a} and {b}: ",
)  # fmt: skip
"""What may stand before a statement or a question in training; {a} and {b} are any words."""

CLOSINGS = (
    ", as far as we know.", ", said the {a}.", ", and the {a} {b} did not change it.", ", for the {a}.",
    ", at least in the {a}.", ", they say.", ", with the {a} of the {b}.", ", as the {a} showed.",
)  # fmt: skip
"""What may stand in place of a statement's full stop in training."""


@dataclass(frozen=True, kw_only=True)
class Wordings:
    """Ways to say and to ask, and the nouns that they may have."""

    pairs: Sequence[Wording]
    nouns: Mapping[str, Sequence[str]]


TRAINING = Wordings(pairs=TRAINED, nouns=NOUNS)
EVALUATION = Wordings(pairs=HELD_OUT, nouns=HELD_NOUNS)
