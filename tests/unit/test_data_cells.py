"""Tasks in cells: prompts are functions of seed, cell and index, held-out content is never trained on, and verifiers
grade any string; each answer also by other means than the task's own."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.data.tasks.answers import NAMES, SENTENCES, AnswersTask, num_words
from herd.data.tasks.chains import ChainsTask
from herd.data.tasks.known import MADE
from herd.data.tasks.search import SearchTask, mazes, solutions
from herd.data.tasks.spelling import SpellingTask
from herd.data.tasks.task import UNKNOWN, CellTask, is_heldout, of_split
from herd.errors import HerdError

ANY = st.text(st.characters(exclude_categories=())) | st.text("0123456789 =+\n.#SEUDLRten", max_size=30)
TASKS = {name: (make(1), make(1, heldout=True)) for name, make in MADE.items()}
CELLS = [(name, cell) for name, (task, _) in TASKS.items() for cell in task.cells]


def text(task: CellTask, cell: str, index: int) -> str:
    [message] = task.prompt(cell, index)
    content: str = message["content"]
    return content


def content_of(name: str, question: str) -> str:
    """What a question is about, the same for every order and operation."""
    words = question.split()
    match name, words[0]:
        case "spelling", "spell":
            return words[1]
        case "spelling", "count":
            return words[3]
        case "chains" | "search", "add" | "ten":
            return " ".join(sorted(words[1:]))
        case "answers", _:
            return question.partition(" in ")[0]
    return " ".join(words[1:])


def wrong_answers(name: str, right: str) -> tuple[str, ...]:
    match name:
        case "refusals":  # a refusal with more words is one still
            return "", "Here is how to do it."
        case "twins":  # any text is an answer
            return "", "I can't help with that."
        case "answers":
            return "", "x", "1 2"
    return "", "x", f"{right} 0"


@pytest.mark.parametrize(("name", "cell"), CELLS)
def test_solutions_are_right_other_answers_wrong_and_prompts_repeatable(name: str, cell: str):
    assert " " not in cell
    for task, again in zip(TASKS[name], (MADE[name](1), MADE[name](1, heldout=True)), strict=True):
        for index in range(3):
            prompt, right = task.prompt(cell, index), task.solution(cell, index)
            assert again.prompt(cell, index) == prompt and again.solution(cell, index) == right
            assert task.grade(prompt, right).right
            assert task.grade([{"role": "system", "content": "Be brief."}, *prompt], f"{right}\n").right
            for wrong in wrong_answers(name, right):
                if right != wrong:
                    assert task.grade(prompt, wrong).score == 0, wrong


@pytest.mark.parametrize("name", MADE)
def test_what_is_held_out_is_in_no_training_prompt_whatever_the_seeds(name: str):
    def contents(heldout: bool, seeds: tuple[int, ...]) -> set[str]:
        tasks = [MADE[name](seed, heldout=heldout) for seed in seeds]
        return {content_of(name, text(task, cell, i)) for task in tasks for cell in task.cells for i in range(60)}

    trained, held = contents(False, (1, 2)), contents(True, (1, 3))
    assert held and not trained & held


@pytest.mark.parametrize("name", MADE)
def test_another_seed_asks_other_questions(name: str):
    cell = TASKS[name][0].cells[0]
    first, second = ([text(MADE[name](seed), cell, i) for i in range(40)] for seed in (1, 2))
    assert first != second and len(set(first)) > 10


@given(st.sampled_from(CELLS), st.integers(0, 50), ANY)
def test_any_string_has_a_grade_from_0_to_1(where: tuple[str, str], index: int, said: str):
    name, cell = where
    task = TASKS[name][0]
    for messages in (task.prompt(cell, index), [], [{"role": "user", "content": said}]):
        grade = task.grade(messages, said)
        assert 0 <= grade.score <= 1 and grade == task.grade(messages, said)


@given(ANY, st.sampled_from(sorted(MADE)))
def test_other_prompts_are_unknown(said: str, name: str):
    assert TASKS[name][0].grade([{"role": "user", "content": f"{said}?"}], said) == UNKNOWN


def test_a_split_without_content_is_named():
    never = next(one for one in map(str, itertools.count()) if not is_heldout(one))
    with pytest.raises(HerdError, match="of the questions drawn none is held out"):
        of_split(itertools.repeat(never), True)


@given(st.sampled_from(TASKS["spelling"][0].cells), st.integers(0, 500))
def test_words_are_spelt_and_counted(cell: str, index: int):
    task = SpellingTask(5)
    question, said = text(task, cell, index), task.solution(cell, index)
    if match := re.fullmatch(r"spell ([a-z]+) backward", question):
        assert [*said] == [*match[1]][::-1] and len(said) == int(cell[-1])
    else:
        [letter, _, word] = question.split()[1:]
        assert len(re.findall(letter, word)) == int(said) and len(word) == int(cell[-1])


def test_a_list_of_words_is_used_where_it_has_enough_of_a_length():
    words = [a + b + c for a in "abcd" for b in "efgh" for c in "ijkl"] + ["Haus", "x1y", "Straße"]
    task = SpellingTask(1, words=words)
    assert task.cells == ("backward-3", "letters-3")
    assert all(text(task, "backward-3", i).split()[1] in words for i in range(50))
    with pytest.raises(HerdError, match="2 words are too few"):
        SpellingTask(1, words=["haus", "maus", "3"])


@given(st.integers(2, 6), st.integers(0, 500))
def test_a_chain_ends_with_the_sum_and_only_its_last_line_counts(length: int, index: int):
    task = ChainsTask(5)
    prompt, said = task.prompt(f"add-{length}", index), task.solution(f"add-{length}", index)
    total = sum(map(int, prompt[0]["content"].split()[1:]))
    lines = said.split("\n")
    assert len(lines) == length - 1 and all(eval(line.replace("=", "==")) for line in lines)
    assert task.grade(prompt, said).parts == {"steps": 1}
    for other in (str(total), f"nonsense\n{total}", f"1 + 1 = {total}\n\n"):
        grade = task.grade(prompt, other)
        assert grade.right and (length == 2 or not grade.parts["steps"])
    for wrong in (str(total + 1), f"{total}\n{total + 1}", f"{said} ="):
        assert task.grade(prompt, wrong).score == 0


@given(st.integers(3, 6), st.integers(0, 300), st.randoms())
def test_any_of_the_digits_that_sum_to_ten_count_and_no_others(length: int, index: int, random):
    task = SearchTask(5)
    prompt = task.prompt(f"ten-{length}", index)
    digits = prompt[0]["content"].split()[1:]
    for _ in range(8):
        chosen = random.sample(digits, random.randint(1, length))
        assert task.grade(prompt, " ".join(chosen)).right == (sum(map(int, chosen)) == 10)
    for other in ("9 1", "5 5", "1 2 3 4", "10", "1 1 8"):
        owned = all(other.split().count(one) <= digits.count(one) for one in other.split())
        assert task.grade(prompt, other).right == (owned and other != "10")
    assert all(task.grade(prompt, one).right for one in solutions(prompt[0]["content"]))


@given(st.integers(1, 4), st.integers(0, 300), st.lists(st.sampled_from("UDLRX"), max_size=6))
def test_any_way_through_a_maze_counts_and_no_others(distance: int, index: int, moves: list[str]):
    task = SearchTask(5)
    prompt = task.prompt(f"maze-{distance}", index)
    grid = [prompt[0]["content"].split()[1:][row * 3 : row * 3 + 3] for row in range(3)]
    way = [(row, column) for row in range(3) for column in range(3) if grid[row][column] == "S"]
    for move in moves:
        dy, dx = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1), "X": (9, 9)}[move]
        way.append((way[-1][0] + dy, way[-1][1] + dx))
    free = {(row, column) for row in range(3) for column in range(3) if grid[row][column] != "#"}
    right = set(way) <= free and len(set(way)) == len(way) and grid[way[-1][0]][way[-1][1]] == "E"
    assert task.grade(prompt, " ".join(moves)).right == right
    assert len(task.solution(f"maze-{distance}", index).split()) == distance


def test_a_way_through_a_maze_goes_to_no_field_twice():
    prompt = [{"role": "user", "content": "maze S . E . . # . . ."}]
    grades = [SearchTask(1).grade(prompt, way).right for way in ("R R", "D R U R", "R L R R", "D U R R")]
    assert grades == [True, True, False, False]


def test_a_maze_of_each_distance_has_a_way_of_that_length_and_no_shorter_one():
    task = SearchTask(1)
    for distance, grids in mazes().items():
        prompt = [{"role": "user", "content": f"maze {grids[0]}"}]
        lengths = [
            length
            for length in range(1, distance + 1)
            for way in itertools.product("UDLR", repeat=length)
            if task.grade(prompt, " ".join(way)).right
        ]
        assert set(lengths) == {distance}


def test_demonstrations_of_a_search_are_not_always_the_same_answer():
    task = SearchTask(1)
    seen: dict[str, set[str]] = {}
    for index in range(600):
        seen.setdefault(content_of("search", text(task, "ten-4", index)), set()).add(task.solution("ten-4", index))
    assert max(map(len, seen.values())) > 2


@pytest.mark.parametrize("language", NAMES)
def test_form_is_graded_by_language_and_length(language: str):
    task = AnswersTask(1)
    prompt = task.prompt(f"{language}-8", 0)
    other = "ru" if language != "ru" else "de"
    assert task.grade(prompt, SENTENCES[language]).parts == {"language": 1, "words": 1}
    assert task.grade(prompt, SENTENCES[other]).parts["language"] == 0
    long = task.grade(prompt, " ".join([SENTENCES[language]] * 9))
    assert long.parts == {"language": 1, "words": 0} and long.score == 0
    assert task.grade(prompt, " ").parts == {"language": 0, "words": 0}


def test_words_of_languages_without_spaces_are_counted_by_letters():
    assert [num_words("这是一个好问题。", "zh"), num_words("a b, c", "en"), num_words("", "ja")] == [4, 3, 0]
