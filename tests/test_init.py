"""`study init`: what it writes, asks and refuses; and the shell's completion of SPEC."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
from click.shell_completion import CompletionItem, ShellComplete
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import analysis
from study.cli import main
from study.errors import SpecError
from study.spec import check, init, read
from study.spec.model import SAMPLERS, SCHEDULERS
from tests import user_code
from tests.test_readme import commands
from tests.test_startup import LIBRARIES
from trainables.workloads.catalogue import CATALOGUE, FAMILIES, RULES, SOLO

OFFERED = [(data, model) for data in CATALOGUE for model in init.offered(data)]
ALL = (*RULES, *SOLO)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(main, ["init", *arguments], input=typed)


def written(file: str | Path) -> init.Answers:
    """The answers as the written spec holds them."""
    found = read(file)
    budget = found.budget
    assert budget.epochs
    return init.Answers(
        found.workload.data,
        found.workload.model,
        tuple(found.search.optimizers()),
        budget.trials,
        budget.epochs,
        found.lanes.seeds,
        found.name,
    )


@pytest.mark.parametrize(("data", "model"), OFFERED)
def test_every_model_offered_for_a_data_set_gives_a_valid_spec_with_what_was_asked_for(
    data: str, model: str, folder: Path
) -> None:
    numbers = ["--trials", "7", "--epochs", "2", "--seeds", "4"]
    names = ["--data", data, "--model", model, "--optimizers", "adam, nesterov", "--name", "mine"]
    found = run("new.toml", *names, *numbers)
    assert found.exit_code == 0, found.output
    assert written("new.toml") == init.Answers(data, model, ("adam", "nesterov"), 7, 2, 4, "mine")
    assert found.stdout.splitlines()[-2:] == ["  study check new.toml", "  study run new.toml"]


@pytest.mark.parametrize(("data", "model"), OFFERED)
def test_a_comment_of_one_line_stands_over_every_key(data: str, model: str) -> None:
    lines = init.render(init.Answers(data=data, model=model)).splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r"(# )?[a-z_]+ = ", line)]
    assert len(keys) >= 16
    for number in keys:
        assert re.match(r"# [A-Z]", lines[number - 1]), lines[number]
        assert not lines[number - 2].startswith("# "), lines[number]


@pytest.mark.parametrize(("data", "model"), OFFERED)
def test_the_target_that_is_written_as_a_comment_is_valid(data: str, model: str) -> None:
    text = init.render(init.Answers(data=data, model=model))
    assert check(tomllib.loads(text.replace("# target", "target"))).workload.target


@pytest.mark.parametrize(("data", "model"), OFFERED)
def test_keys_that_are_written_as_comments_are_valid(data: str, model: str) -> None:
    text = init.render(init.Answers(data=data, model=model))
    for key in ("baseline", "enqueue", "timeout", "warm_start"):
        text = text.replace(f"# {key} = ", f"{key} = ")
    spec = check(tomllib.loads(text))
    assert (len(spec.baseline), len(spec.enqueue), spec.tuning.timeout) == (1, 1, "2h")
    assert spec.tuning.warm_start == "results/earlier"


def test_lists_of_what_is_valid_are_whole() -> None:
    text = init.render(init.Answers())
    known = (*CATALOGUE, *FAMILIES, *ALL, *SAMPLERS, *SCHEDULERS)
    comments = " ".join(line for line in text.splitlines() if line.startswith("#"))
    assert set(known) <= set(re.findall(r"[\w-]+", comments))
    helped = re.findall(r"[\w-]+", run("--help").stdout)
    assert {*CATALOGUE, *FAMILIES} <= set(helped)
    usual, text = init.Answers(), " ".join(run("--help").stdout.split())
    for number in (f"try; {usual.trials}", f"lane; {usual.epochs}", f"rate; {usual.seeds}", ",".join(usual.optimizers)):
        assert f"{number} if not given" in text


def test_without_a_terminal_it_takes_the_defaults(folder: Path) -> None:
    found = run(typed="cubic\n")
    assert found.exit_code == 0
    assert found.stdout == (
        "study.toml is a valid spec; edit it as you like, then run:\n  study check study.toml\n  study run study.toml\n"
    )
    assert written("study.toml") == init.Answers()


@pytest.mark.parametrize(
    ("flags", "data", "model"),
    [
        (["--data", "cubic"], "cubic", "mlp"),
        (["--data", "mnist"], "mnist", "cnn"),
        (["--data", "quadratic"], "quadratic", "quadratic"),
        (["--model", "quadratic"], "quadratic", "quadratic"),
        (["--model", "linear"], "cubic", "linear"),
        (["--model", "mlp"], "digits", "mlp"),
        (["--data", "mnist", "--model", "linear"], "mnist", "linear"),
    ],
    ids=" ".join,
)
def test_defaults_go_with_the_flags(flags: list[str], data: str, model: str, folder: Path) -> None:
    assert run(*flags).exit_code == 0
    assert (written("study.toml").data, written("study.toml").model) == (data, model)


@pytest.mark.parametrize(
    ("file", "name"),
    [("other.toml", "other"), ("my study (2).toml", "my-study-2"), ("é.toml", "study"), (f"{'n' * 100}", "n" * 80)],
)
def test_a_study_is_called_as_its_file(file: str, name: str, folder: Path) -> None:
    found = run(file)
    assert found.exit_code == 0
    assert written(file).name == name
    if " " in file:
        assert found.stdout.endswith("  study run 'my study (2).toml'\n")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "on_terminal", lambda: True)


@pytest.mark.usefixtures("terminal")
def test_questions_and_answers(folder: Path) -> None:
    found = run(typed="cubic\nlinear\n adam ,sgd,\n5\n2\n6\nmine\n")
    assert found.exit_code == 0
    assert written("study.toml") == init.Answers("cubic", "linear", ("adam", "sgd"), 5, 2, 6, "mine")
    asked = found.stdout.splitlines()
    assert [line.split()[0] for line in asked[: len(CATALOGUE)]] == list(CATALOGUE)
    for question in ("Data set [digits]: ", "Model (mlp or linear) [mlp]: ", "comma separated [sgd, momentum, adam]: "):
        assert question in found.stdout


@pytest.mark.usefixtures("terminal")
def test_answers_of_nothing_are_the_defaults(folder: Path) -> None:
    assert run(typed="\n" * len(init.QUESTIONS)).exit_code == 0
    assert run("no-terminal.toml", "--name", "study", "--yes").exit_code == 0
    assert Path("study.toml").read_text() == Path("no-terminal.toml").read_text()
    assert written("study.toml") == init.Answers()


FLAGS = {
    "data": "kmnist", "model": "mlp", "optimizers": "adam", "trials": "3", "epochs": "2", "seeds": "5", "name": "mine",
}  # fmt: skip


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_answers_its_question(flag: str, folder: Path) -> None:
    found = run(f"--{flag}", FLAGS[flag], typed="\n" * (len(FLAGS) - 1))
    assert found.exit_code == 0
    assert init.QUESTIONS[flag] not in found.stdout
    for other in set(FLAGS) - {flag}:
        assert init.QUESTIONS[other] in found.stdout
    assert str(getattr(written("study.toml"), flag)) in (FLAGS[flag], f"('{FLAGS[flag]}',)")


@pytest.mark.usefixtures("terminal")
def test_data_sets_are_offered_that_suit_the_model(folder: Path) -> None:
    found = run("--model", "linear", typed="\n" * 6)
    assert found.exit_code == 0
    assert "Data set [cubic]: " in found.stdout
    assert "mnist" not in found.stdout


@pytest.mark.usefixtures("terminal")
def test_a_bad_answer_is_told_and_asked_again(folder: Path) -> None:
    found = run(typed="minst\ncubic\ncnn\nlinear\nsgd,adm\n,\nsgd\n0\nmany\n4\n\n\na b\n\n")
    assert found.exit_code == 0
    told = [line for line in found.stdout.splitlines() if line.startswith("Error: ")]
    expected = [
        'workload.data = "minst": unknown data set "minst" (did you mean mnist?); valid: cubic, linear, digits',
        'workload.model = "cnn": cubic has no images but inputs of (2,); those that do: digits',
        'search.optimizer = ["sgd", "adm"]: unknown optimizer "adm" (did you mean adam?); valid: gradient-descent',
        "search.optimizer = []: an empty list leaves nothing to choose",
        "budget.trials = 0: must be at least 1 and at most 1,000,000",
        "'many' is not a valid integer",
        'name = "a b": must be letters, digits, dots',
    ]
    for line, start in zip(told, expected, strict=True):
        assert line.startswith(f"Error: {start}"), line
    assert written("study.toml") == init.Answers("cubic", "linear", ("sgd",), trials=4)


@pytest.mark.usefixtures("terminal")
def test_what_breaks_off_the_questions_leaves_no_file(folder: Path) -> None:
    found = run(typed="cubic\n")  # and then the end of input, to click the same as Ctrl-C
    assert found.exit_code == 130
    assert found.stderr.endswith("study: interrupted\n")
    assert list(folder.iterdir()) == []


def test_on_a_terminal_of_its_own_it_asks(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "study", "init"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs) as asking:
        os.close(theirs)
        os.write(ours, b"cubic\n" + b"\n" * 6)
        assert asking.wait(60) == 0
        assert b"Model (mlp or linear) [mlp]: " in os.read(ours, 100_000)
    os.close(ours)
    assert written(tmp_path / "study.toml").data == "cubic"


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("there", ["a file", "a folder", "a link to nothing"])
def test_what_is_there_is_refused_before_a_question_and_stays(there: str, folder: Path) -> None:
    file = folder / "study.toml"
    match there:
        case "a file":
            file.write_text("precious")
        case "a folder":
            file.mkdir()
        case _:
            file.symlink_to("nowhere")
    found = run()
    assert found.exit_code == 2
    assert found.stdout == ""
    assert found.stderr == (
        "study: study.toml: 1 mistake\n"
        "  exists and is not overwritten; give another name, as in `study init other.toml`\n"
    )
    assert list(folder.iterdir()) == [file]
    assert there != "a file" or file.read_text() == "precious"


def test_a_file_that_appears_meanwhile_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "study.toml"

    def slow(answers: init.Answers) -> str:
        file.write_text("precious")
        return "name ="

    monkeypatch.setattr(init, "render", slow)
    found = run()
    assert found.exit_code == 2
    assert "study.toml: 1 mistake\n  exists and is not" in found.stderr
    assert file.read_text() == "precious"


BAD = {
    "unknown optimizer": (["--optimizers", "sgd,adm"], 'unknown optimizer "adm" (did you mean adam?); valid: gradient'),
    "no optimizer": (["--optimizers", " , "], "search.optimizer = []: an empty list leaves nothing to choose"),
    "an optimizer twice": (["--optimizers", "sgd,sgd"], "a value is given twice; give each once"),
    "unknown data": (["--data", "minst"], 'unknown data set "minst" (did you mean mnist?); valid: cubic, linear'),
    "unknown model": (["--model", "mpl"], 'unknown model "mpl" (did you mean mlp?); valid: linear, mlp'),
    "a cnn of vectors": (["--data", "cubic", "--model", "cnn"], 'workload.model = "cnn": cubic has no images but'),
    "another model of quadratic": (["--data", "quadratic", "--model", "mlp"], "is for one model; valid: quadratic"),
    "quadratic of other data": (["--data", "digits", "--model", "quadratic"], "is for one data set; valid: quadratic"),
    "a name that is a path": (["--name", "../up"], 'name = "../up": must be letters, digits, dots'),
    "a name of two lines": (["--name", 'a"\n[b]'], "must be letters, digits, dots"),
    "no trials": (["--trials", "0"], "Invalid value for '--trials': 0 is not in the range x>=1"),
    "epochs in words": (["--epochs", "few"], "Invalid value for '--epochs': 'few' is not a valid integer"),
    "a folder that is not there": (["no/study.toml"], "cannot be written: there is no folder no; create it first"),
    "a name too long for a file": ([f"{'n' * 300}.toml"], "File name too long"),
}


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(("flags", "message"), BAD.values(), ids=BAD)
def test_bad_values_are_one_message_and_no_file(flags: list[str], message: str, folder: Path) -> None:
    found = run(*flags)
    assert found.exit_code == 2
    assert found.stdout == ""
    assert message in found.stderr
    assert "mistakes" not in found.stderr
    assert list(folder.iterdir()) == []


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    found = run("--optimizers", "adm", "--data", "cubic", "--model", "cnn", "--name", "a b")
    assert found.exit_code == 2
    assert found.stderr.startswith("study: the new spec: 3 mistakes\n  name = ")


WORKLOADS = st.sampled_from(OFFERED)
OPTIMIZERS = st.lists(st.sampled_from(ALL), min_size=1, unique=True)
TRIALS, EPOCHS, SEEDS = (st.integers(1, most) for most in (10**6, 10**6, 10**3))
NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", fullmatch=True)


@settings(max_examples=20)
@given(workload=WORKLOADS, optimizers=OPTIMIZERS, trials=TRIALS, epochs=EPOCHS, seeds=SEEDS, name=NAME)
def test_what_is_written_reads_back_equal(
    workload: tuple[str, str], optimizers: list[str], trials: int, epochs: int, seeds: int, name: str
) -> None:
    asked = init.Answers(*workload, tuple(optimizers), trials, epochs, seeds, name)
    values = {**vars(asked), "optimizers": ",".join(optimizers)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.toml"
        found = run(str(file), *(f"--{flag}={value}" for flag, value in values.items() if value))
        assert found.exit_code == 0, found.output
        assert written(file) == asked


@pytest.mark.long
@given(text=st.text(st.characters(), min_size=1))
def test_any_text_is_a_name_or_a_mistake(text: str) -> None:
    for answers in (init.Answers(name=text), init.Answers(data=text), init.Answers(optimizers=(text,))):
        try:
            tables = tomllib.loads(init.render(answers))
        except SpecError:
            continue
        assert text in (tables["name"], tables["workload"]["data"], *tables["search"]["optimizer"])


@pytest.mark.nightly
@pytest.mark.usefixtures("one_worker")
def test_the_defaults_run_to_a_report(tmp_path: Path) -> None:
    for arguments in (["init", "--trials", "2", "--epochs", "1"], ["run", "study.toml"]):
        command = [sys.executable, "-m", "study", *arguments]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
        assert found.returncode == 0, found.stderr
    assert found.stdout.endswith("results: results/study\nreport:  results/study/report/index.html\n")
    trials = analysis.load(tmp_path / "results/study").trials
    assert len(trials) == 2
    assert (tmp_path / "results/study/report/index.html").is_file()


def completed(*arguments: str) -> list[CompletionItem]:
    return ShellComplete(main, {}, "study", "_STUDY_COMPLETE").get_completions(list(arguments[:-1]), arguments[-1])


@pytest.mark.parametrize(
    "before", [["run"], ["check"], ["submit"], ["manifest", "slurm"], ["run", "--trials", "4"]], ids=" ".join
)
def test_specs_are_completed_by_shipped_names_and_files(before: list[str], folder: Path) -> None:
    (folder / "mine.toml").touch()
    (folder / "notes.txt").touch()
    found = {item.value: item for item in completed(*before, "")}
    assert {"digits-cnn", "quick", "reproduce/linear", "mine.toml"} <= set(found)
    assert not {"notes.txt", "run"} & set(found)
    assert "needs no download" in str(found["digits-cnn"].help)
    assert {item.type for item in found.values()} == {"plain"}
    assert [item.value for item in completed(*before, "m")] == ["mlp", "mnist-cnn", "mine.toml"]


def test_a_folder_typed_so_far_is_kept(folder: Path) -> None:
    (folder / "specs").mkdir()
    (folder / "specs/a.toml").touch()
    assert [item.value for item in completed("run", "./specs/")] == ["./specs/a.toml"]
    assert [item.value for item in completed("run", f"{folder}/specs/a")] == [f"{folder}/specs/a.toml"]


@pytest.mark.parametrize("incomplete", ["spe", "no/such/", "/"])
def test_where_no_spec_begins_so_the_shell_looks_for_files(incomplete: str, folder: Path) -> None:
    assert [(item.value, item.type) for item in completed("run", incomplete)] == [(incomplete, "file")]


def test_every_shipped_name_that_is_completed_can_be_read(folder: Path) -> None:
    for item in completed("run", ""):
        assert read(item.value)


def test_bash_asks_and_nothing_heavy_is_imported(tmp_path: Path) -> None:
    code = f"""
import sys
from study.cli import main
try:
    main(prog_name="study")
finally:
    print("HEAVY", [name for name in {LIBRARIES} if name in sys.modules])
"""
    asked = {"_STUDY_COMPLETE": "bash_complete", "COMP_WORDS": "study run dig", "COMP_CWORD": "2"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **asked}, capture_output=True, text=True
    )
    assert found.stdout == "plain,digits-cnn\nHEAVY []\n"


def test_bash_completes(tmp_path: Path) -> None:
    (tmp_path / "dig.toml").touch()
    (setup,) = (line for line in commands() if line.startswith("eval "))
    # _study_completion is what the line told bash to call at a tab.
    code = f"""
{setup}
COMP_WORDS=(study run dig) COMP_CWORD=2
_study_completion study
echo "${{COMPREPLY[@]}}"
complete -p study
"""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    found = subprocess.run(["bash", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    completions, hook = found.stdout.splitlines()
    assert completions == "digits-cnn dig.toml", found.stderr
    assert "-F _study_completion study" in hook


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [(["--data", "user_code:waves"], ['model = "mlp"', 'metric = "loss"', 'batch_size = [16, 64, "full"]']),
     pytest.param(["--data", "user_code:waves", "--model", "user_code:flat"],
                  ["width = {low = 8, high = 64, log = true}"], marks=pytest.mark.long)],
    ids=["data", "model"],
)  # fmt: skip
def test_what_users_bring_makes_a_spec_that_suits_it(
    arguments: list[str], lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = "\n\ndef flat(in_shape, out_features, width):\n    return plain(in_shape, out_features, width, 1)\n"
    (tmp_path / "user_code.py").write_text(Path(user_code.__file__).read_text() + flat)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["init", "own.toml", "--yes", *arguments])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "own.toml").read_text()
    for line in lines:
        assert f"{line}\n" in text
    assert ("\ndepth = " in text) == ("--model" not in arguments)


@pytest.mark.parametrize(
    ("model", "expected"),
    [("Listed", ["the call was Listed(in_dim=64, hidden=8, num_classes=10, bias=True)", "hidden=[width] * depth"]),
     ("Sizes", ["replace each ... by an expression of in_shape, out_features, width, depth", "sizes=..., activ"])],
)  # fmt: skip
def test_a_model_that_does_not_fit_is_answered_with_its_adapter(
    model: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["init", "own.toml", "--yes", "--model", f"tests.test_adapting:{model}"])
    assert result.exit_code == 2
    for text in expected:
        assert text in result.output
    assert not (tmp_path / "own.toml").exists()


@pytest.mark.long
def test_columns_that_are_no_inputs_are_left_out(folder: Path) -> None:
    days = [f"2024-01-{1 + n % 28:02}" for n in range(60)]
    rows = "\n".join(f"{n},{days[n]},{n % 7 if n % 5 else ''},name {n},,{'xy'[n % 2]}" for n in range(60))
    Path("t.csv").write_text(f"a,day,b,name,none,kind\n{rows}\n")
    result = run("t.toml", "--data", "t.csv", "--label", "kind")
    left_out = [
        "Left out: day holds dates (2024-01-01)",
        "Left out: name holds 60 different texts (name 0 ... name 9), and at most 20 can be categories",
        "Left out: none holds no value",
        "Left out: a has a different whole number in every example, like an ID",
    ]
    assert result.output.splitlines()[:4] == left_out
    assert "".join(f"# {line}\n" for line in left_out) in Path("t.toml").read_text()
    spec = read("t.toml")
    assert (spec.workload.exclude, spec.workload.missing) == (("day", "name", "none", "a"), "mean")
    assert spec.workload.facts.in_shape == (1,)
    Path("u.csv").write_text("day,kind\n" + "".join(f"{day},{'xy'[n % 2]}\n" for n, day in enumerate(days)))
    result = run("u.toml", "--data", "u.csv", "--label", "kind")
    assert result.exit_code == 2
    assert result.output.endswith(
        "  workload.data: u.csv: 1 of 1 inputs cannot be used; make numbers of at least one of them\n"
        "      day holds dates (2024-01-01)\n"
    )


@pytest.mark.long
def test_a_table_of_few_rows_gets_batches_that_it_fills(folder: Path) -> None:
    Path("t.csv").write_text("a,kind\n" + "".join(f"{n * n},{'xy'[n % 2]}\n" for n in range(12)))
    assert run("t.toml", "--data", "t.csv", "--label", "kind").exit_code == 0
    assert read("t.toml").search.batch_size.ends() == [1, "full"]


@pytest.mark.long
def test_a_table_of_ones_own_needs_its_label(folder: Path) -> None:
    rows = "\n".join(f"{n},{n * n % 7},{'xy'[n % 2]}" for n in range(60))
    Path("t.csv").write_text(f"a,b,kind\n{rows}\n")
    result = run("t.toml", "--data", "t.csv")
    assert result.exit_code == 2
    assert 'say which column is to be predicted, as in label = "kind" (`study init --label`)' in result.output
    assert not Path("t.toml").exists()
    assert run("t.toml", "--data", "t.csv", "--label", "kind").exit_code == 0
    spec = read("t.toml")
    assert (spec.workload.label, spec.workload.model, spec.workload.metric) == ("kind", "mlp", "accuracy")
    assert run("u.toml", "--data", "t.csv", "--label", "b", "--task", "regression").exit_code == 0
    assert read("u.toml").workload.facts.task == "regression"
