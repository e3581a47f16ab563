"""Reading a results folder: its tables as DataFrames, pooled by cell."""

from __future__ import annotations

import json
import math
import sys
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import schema
from analysis.remote import fetch
from analysis.schema import CELL, FOLDERS, IMPORTANCE, OBJECTIVES, STINT, TABLES, TRIES, DamagedError, ResultsError

SECONDS_ALONE, SECONDS_OF_STACK = "seconds of one network trained alone", "seconds of the whole stack of lanes"


def parts(folder: Path) -> list[tuple[int, int, Path]]:
    """The valid parts of a table: (first append, last append, file), in order, without parts that were merged."""
    named = ((schema.PART_NAME.fullmatch(file.name), file) for file in folder.glob("*.parquet"))
    listed = [(int(match[1]), int(match[2]), file) for match, file in named if match]
    kept: list[tuple[int, int, Path]] = []
    for part in sorted(listed, key=lambda part: (part[0], -part[1], part[2])):
        if not kept or part[1] > kept[-1][1]:
            kept.append(part)
    return kept


def read_part(file: Path) -> pa.Table:
    """The rows of a Parquet file; DamagedError unless its bytes are those that were written, as far as can be seen.

    The digest in its name vouches for every byte; files of earlier versions have none.
    """
    content, named = file.read_bytes(), schema.PART_NAME.fullmatch(file.name)
    if named and named[3] and schema.digest(content) != named[3]:
        raise DamagedError(f"{file}: is damaged: its digest is not that in its name")
    try:
        return pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()
    except Exception as error:
        raise DamagedError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from error


def stints(trials: pd.DataFrame) -> pd.DataFrame:
    """The stays of trials on workers: trial and the columns of `STINT`.

    Trials that no worker reported have none. One that an older program ran has one, from its start, as if it had never
    been interrupted.
    """
    rows: list[dict[str, Any]] = []
    for row in records(trials):
        if row["stints"] is not None:
            rows += [{"trial": row["trial"], **stint} for stint in row["stints"]]
        elif pd.notna(row["worker"]) and pd.notna(row["started"]):
            ended = row["started"] + row["wall_seconds"]
            rows.append({name: row[name] for name in ("trial", "started", "worker", "gpus")} | {"ended": ended})
    frame = pd.DataFrame(rows, columns=["trial", *STINT.names])
    return frame.astype({"trial": "int64", "started": "float64", "ended": "float64"})  # if it is empty, too


def spent(trial: Mapping[Any, Any], cpus: float, gpus: float) -> tuple[float, float]:
    """CPU-seconds and GPU-seconds of a trial (its row, or its last result), by the resources that it had.

    `cpus` and `gpus` are those that the spec gives a trial; they are used for trials of older programs only.
    """
    if (stays := trial.get("stints")) is None:
        seconds, none = trial.get("wall_seconds", 0.0), trial.get("gpus") is not None and not len(trial["gpus"])
        return seconds * cpus, 0.0 if none else seconds * gpus
    timed = [(stay["ended"] - stay["started"], stay) for stay in stays]
    gpu_seconds = sum(length * stay["share"] * len(stay["gpus"]) for length, stay in timed)
    return sum(length * stay["cpus"] for length, stay in timed), gpu_seconds


def hours(results: Results, cpus: float, gpus: float) -> tuple[float, float]:
    """CPU-hours and GPU-hours of all trials, those of the confirmation included; `cpus` and `gpus` as in `spent`."""
    both = [each.trials for each in (results, results.confirmation) if each is not None]
    seconds = [spent(row, cpus, gpus) for trials in both for row in records(trials)]
    return sum(cpu for cpu, _ in seconds) / 3600, sum(gpu for _, gpu in seconds) / 3600


@dataclass(frozen=True)
class Pool:
    """The trials and lanes that make the cells; `cell` is the lowest trial number of those pooled in it.

    Attributes:
        trials: columns of `TRIALS` and cell; settings are empty text if none. Identical repeats are absent.
        lanes: columns of `LANES` and cell; one row per (cell, recipe, learning rate, seed).
        left_out: trials of these cells that used less of the budget than the pooled ones, or ended worse.
    """

    trials: pd.DataFrame
    lanes: pd.DataFrame
    left_out: pd.DataFrame


def pool(trials: pd.DataFrame, lanes: pd.DataFrame) -> Pool:
    """Gather the trials of each cell from rows of `TRIALS` and `LANES`; replicates are the same cell with more seeds.

    Only equals are pooled: the completed trials of a cell; if there are none, the stopped ones that came furthest, then
    those that diverged, then the rest. A seed that ran twice at a rate counts once.
    """
    trials = trials.fillna({"settings": ""})
    ended = trials["outcome"].map({"completed": 0, "stopped": 1, "diverged": 2}).fillna(3)
    # The scheduler stops trials at several points.
    came = trials["updates"].where(trials["outcome"] == "stopped", 0)
    ordered = trials.assign(ended=ended, came=-came).sort_values(["ended", "came", "trial"])
    cell = ordered.groupby(CELL, sort=False)
    equal = (ordered[["ended", "came"]] == cell[["ended", "came"]].transform("first")).all(axis=1)
    kept = ordered.assign(cell=cell["trial"].transform("first"))[equal].sort_values("trial", ignore_index=True)
    own = lanes.merge(kept[["trial", "cell"]], on="trial").sort_values(["cell", "trial", "lane"])
    own = own.drop_duplicates(["cell", "recipe", "learning_rate", "seed"], ignore_index=True)
    repeat = kept["trial"].isin(lanes["trial"]) & ~kept["trial"].isin(own["trial"])
    kept = kept[~repeat].drop(columns=["ended", "came"]).reset_index(drop=True)
    return Pool(kept, own, ordered.loc[~equal, trials.columns].sort_values("trial", ignore_index=True))


def pareto(table: pd.DataFrame, objectives: Sequence[str], maximize: bool) -> pd.Series[bool]:
    """Which completed cells no other cell dominates (as good in every objective and better in one).

    Args:
        table: `cells`, or any frame with the columns outcome, validation and the objectives.
        objectives: some of `OBJECTIVES`; `metric` is the column validation, all others are minimized.
        maximize: whether a larger metric is better.

    Returns:
        Shape (rows of table,), its index. Cells with equal objectives are on the front together; one that lacks an
        objective is never on it.
    """
    columns = ["validation" if name == "metric" else name for name in objectives]
    costs = table[columns].to_numpy(dtype=np.float64, copy=True)
    if maximize and "metric" in objectives:
        costs[:, columns.index("validation")] *= -1
    costs[(table["outcome"] != "completed").to_numpy()] = math.nan
    # NaN compares false, so a cell that lacks an objective dominates nothing.
    front = [
        not np.isnan(cost).any() and not ((costs <= cost).all(axis=1) & (costs < cost).any(axis=1)).any()
        for cost in costs
    ]
    return pd.Series(front, index=table.index, dtype=bool)


@dataclass(frozen=True)
class Results:
    """One study's results.

    Attributes:
        path: the results folder.
        spec: the resolved spec, as plain tables.
        spec_text: the text of `spec.toml`.
        provenance: commit, versions, hardware, seeds and command; empty if the study has not written it yet.
        trials: one row per ended trial (`TRIALS` without rows), and stack_seconds, the training time of its stack.
        lanes: one row per lane of an ended trial (`LANES`); a recipe is empty text if none.
        alone: whether the train_seconds of trials and curves are those of one network trained alone, without the
            grid's extensions. If a trial did not measure them, as older programs, all are those of the stack.
    """

    path: Path
    spec: dict[str, Any]
    spec_text: str
    provenance: dict[str, Any]
    trials: pd.DataFrame = field(repr=False)
    lanes: pd.DataFrame = field(repr=False)
    alone: bool = False

    def __post_init__(self) -> None:
        if "stack_seconds" in self.trials:  # a changed copy
            return
        object.__setattr__(self, "lanes", _filled(self.lanes, recipe="", schedule="constant", warmup=0.0))
        trials = _filled(self.trials, recipe="").assign(stack_seconds=self.trials["train_seconds"])
        each = trials.loc[trials["updates"] > 0, "update_seconds"]
        alone = len(each) > 0 and bool(each.notna().all())
        if alone:
            trials["train_seconds"] = (trials["updates"] * trials["update_seconds"]).fillna(0.0)
        for name, value in (("trials", trials), ("alone", alone)):
            object.__setattr__(self, name, value)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row per (trial, lane, update, split, metric) (`CURVES`); read at first use."""
        curves = _read("curves", self.path)
        if self.alone:
            each = self.trials.set_index("trial")["update_seconds"]
            curves["train_seconds"] = curves["update"] * curves["trial"].map(each)
        return curves

    @property
    def seconds_label(self) -> str:
        """What train_seconds are, for axes and captions."""
        return SECONDS_ALONE if self.alone else SECONDS_OF_STACK

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row per (trial, lane, test example) (`PREDICTIONS`); empty if they were not recorded."""
        return _read("predictions", self.path)

    @cached_property
    def importance(self) -> pd.DataFrame:
        """How much each parameter matters (`IMPORTANCE`); empty if trials were too few, or the program too old."""
        file, table = self.path / schema.IMPORTANCE_FILE, IMPORTANCE.empty_table()
        try:
            table = read_part(file)
            kept = (table.schema.metadata or {}).get(b"digest")
            if kept and kept.decode(errors="replace") != schema.rows_digest(table.to_pylist()):
                raise DamagedError(f"{file}: is damaged: its digest is not that of its rows")
            table = table.select(IMPORTANCE.names).cast(IMPORTANCE)
        except FileNotFoundError:
            pass
        except (OSError, KeyError, ValueError) as error:
            raise ResultsError(
                f"{file}: cannot be read ({error}); `study report {self.path}` writes it again"
            ) from error
        return pd.DataFrame(table.to_pandas())

    @cached_property
    def pooled(self) -> Pool:
        """The trials and lanes by cell, which all statistics use."""
        return pool(self.trials, self.lanes)

    @property
    def confirmation(self) -> Results | None:
        """The winners on fresh seeds: the results of `confirm/`; None if there are none, or `confirmation_trouble`."""
        return self._confirmed[0]

    @property
    def confirmation_trouble(self) -> str:
        """Why there is a `confirm/` but no confirmation: it has no trials or cannot be read; otherwise empty."""
        return self._confirmed[1]

    @cached_property
    def _confirmed(self) -> tuple[Results | None, str]:
        if not (self.path / "confirm").is_dir():
            return None, ""
        try:
            again = load(self.path / "confirm")
        except ResultsError as error:
            return None, str(error)
        return (None, "no trial of it has ended yet") if again.trials.empty else (again, "")

    @cached_property
    def baselines(self) -> pd.DataFrame:
        """The spec's baselines in order: name, those of `CELL`, regime, learning_rate, recipe; trial is -1, -2 ..."""
        train = table_of(self.provenance, "data").get("train", sys.maxsize)
        rows = []
        for place, each in enumerate(self.spec.get("baseline", []), start=1):
            arguments = {f"model.{name}": value for name, value in each.get("model_args", {}).items()}
            own, size = each.get("settings", {}) | arguments, each["batch_size"]
            row = {"width": 0, "depth": 0, **each, "batch_size": train if size == "full" else size, "trial": -place}
            row |= {"settings": json.dumps(own, sort_keys=True) if own else ""}
            recipe = {name: each[name] for name in schema.LANES.names if name in each and name != "learning_rate"}
            row |= {"recipe": json.dumps(recipe) if recipe else ""}
            rows.append(row | {"regime": str(schema.regime(row["batch_size"], train))})
        return pd.DataFrame(rows, columns=["trial", "name", *CELL, "regime", "learning_rate", "recipe"])

    @property
    def ended(self) -> int:
        """The number of trials that ended, without those that were interrupted."""
        return int((self.trials["outcome"] != schema.Outcome.INTERRUPTED).sum())

    @property
    def timed_out(self) -> str:
        """That the time-out ended the search before it had all trials, as `stopped after 31 of 64 ...`; else empty."""
        planned, timeout = table_of(self.spec, "budget").get("trials"), table_of(self.spec, "tuning").get("timeout")
        if not timeout or not self.provenance.get("finished") or not isinstance(planned, int) or self.ended >= planned:
            return ""
        return f"stopped after {self.ended} of {planned} trials: timeout = {timeout}"

    @property
    def objectives(self) -> list[str]:
        """The objectives of the search, some of `OBJECTIVES`; the metric alone unless the spec names more."""
        return list(table_of(self.spec, "tuning").get("objectives", ["metric"]))

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.spec["name"])

    @property
    def metric(self) -> str:
        """The workload's metric: `loss` or `accuracy`."""
        return str(self.spec["workload"]["metric"])

    @property
    def maximize(self) -> bool:
        """Whether a larger metric is better."""
        return self.metric == "accuracy"

    @property
    def target(self) -> float | None:
        """The metric value that counts as solved, if the workload names one."""
        value = self.spec["workload"].get("target")
        return None if value is None else float(value)


def load(path: str | Path) -> Results:
    """Read a results folder, finished or not.

    Args:
        path: the folder that `study run` wrote, or its URI, which is fetched into a cache folder.

    Raises:
        ResultsError: if it is no results folder, or one of its files cannot be read.
    """
    if "://" in str(path):
        path = fetch(str(path))
    folder = Path(path)
    spec_file = folder / "spec.toml"
    if not folder.is_dir():
        raise ResultsError(f"{folder}: no such folder; give the results folder that `study run` printed")
    if not spec_file.is_file():
        raise ResultsError(f"{folder}: not a results folder, because it has no spec.toml; `study run SPEC` makes one")
    provenance = read_provenance(folder)
    spec, spec_text = _read_spec(spec_file, provenance.pop("spec_toml", None))
    if "name" not in spec or table_of(spec, "workload").get("metric") not in ("loss", "accuracy"):
        raise ResultsError(
            f"{spec_file}: lacks a name, or a workload.metric of loss or accuracy; restore what `study run` wrote"
        )
    if not isinstance(spec["workload"].get("target", 0.0), int | float):
        raise ResultsError(f"{spec_file}: workload.target is not a number; restore what `study run` wrote")
    objectives = table_of(spec, "tuning").get("objectives", ["metric"])
    if not isinstance(objectives, list) or not all(name in OBJECTIVES for name in objectives):
        raise ResultsError(
            f"{spec_file}: tuning.objectives must be some of {', '.join(OBJECTIVES)}; got {objectives!r}"
        )
    trials = _read("trials", folder)
    # A trial's lanes are written just before the trial.
    appended = max((last for _, last, _ in parts(folder / FOLDERS["lanes"])), default=0)
    has_lanes = (trials["lanes"] > 0).any()
    for name, needed, why, runs in (
        ("trials", appended > 1, "there are lanes", "its trials"),
        ("lanes", has_lanes, "trials.parquet has trials with lanes", "them"),
        ("curves", has_lanes, "trials.parquet has trials with lanes", "them"),
    ):
        if needed and not parts(file := folder / FOLDERS[name]):
            advice = f"restore it, or `study resume {folder}` runs {runs} again"
            raise ResultsError(f"{file}: missing, though {why}; {advice}")
    lanes = _read("lanes", folder)
    held, had = lanes["trial"].value_counts(), trials.set_index("trial")["rows"].dropna()
    if lost := [str(number) for number, rows in had.items() if held.get(number, 0) < rows["lanes"]]:
        advice = f"`study resume {folder}` runs them again"
        raise ResultsError(f"{folder / FOLDERS['lanes']}: lacks lanes of the trials {', '.join(lost[:10])}; {advice}")
    return Results(folder, spec, spec_text, provenance, trials.drop(columns="rows"), lanes)


def read_provenance(folder: Path) -> dict[str, Any]:
    """The content of `provenance.json`, or if that is damaged or lost of the previous one; empty if there is neither.

    Raises:
        ResultsError: if it is damaged, and there is no previous one.
    """
    damages = []
    for file in (folder / schema.PROVENANCE, folder / schema.PREVIOUS):
        try:
            content = schema.unseal(file)
        except FileNotFoundError:
            damages.append(f"{file}: is missing")
            continue
        except (OSError, DamagedError) as error:
            damages.append(str(error))
            continue
        if damages:
            warnings.warn(f"{damages[0]}; read {file.name} instead", schema.ResultsWarning, stacklevel=2)
        return content
    if damages[0].endswith("is missing"):
        return {}
    raise ResultsError(f"{damages[0]}; restore it from a copy, or delete it to read the study without it")


def _read_spec(file: Path, ran: str | None) -> tuple[dict[str, Any], str]:
    """The tables of `spec.toml` and its text; if it was edited or is damaged, those that the trials `ran` with."""
    try:
        text = file.read_text(encoding="utf-8")
        tables, wrong = tomllib.loads(text), ""
    except (OSError, ValueError, RecursionError) as error:
        text, tables, wrong = "", {}, f"not valid TOML ({error})"
    if not isinstance(ran, str):
        if wrong:
            raise ResultsError(f"{file}: {wrong}; restore it from the spec that was run")
        return tables, text
    recorded = tomllib.loads(ran)
    if not wrong and tables != recorded:
        new, old = dict(schema.dotted(tables)), dict(schema.dotted(recorded))
        keys = [key for key in sorted(new.keys() | old.keys()) if new.get(key) != old.get(key)]
        wrong = f"was edited since the trials ran, or is damaged: {', '.join(keys[:5])}"
    if wrong:
        shown = f"shown is the spec that they ran with, and `study resume {file.parent}` takes edits"
        warnings.warn(f"{file}: {wrong}; {shown}", schema.ResultsWarning, stacklevel=3)
        return recorded, ran
    return tables, text


def flat(results: Results, name: str) -> pd.DataFrame:
    """A table whose columns hold numbers and text only, as spreadsheets, R, polars and duckdb read them.

    Lists are left out, but for GPUs, which are joined; searched settings become columns such as settings.momentum.

    Args:
        results: the study.
        name: trials, lanes or curves.
    """
    frame: pd.DataFrame = getattr(results, name)
    lists = [column.name for column in TABLES[name] if pa.types.is_list(column.type) and column.name != "gpus"]
    kept = frame.drop(columns=[*lists, *({"settings"} & set(frame.columns))])
    if "gpus" in kept:
        kept["gpus"] = [" ".join(gpus) if gpus is not None else None for gpus in kept["gpus"]]
    if "settings" in frame:
        settings = pd.DataFrame([json.loads(each or "{}") for each in frame["settings"].fillna("")], index=frame.index)
        kept = kept.join(settings.add_prefix("settings."))
    return kept


def same_setting(one: Mapping[Any, Any] | pd.Series[Any], other: Mapping[Any, Any] | pd.Series[Any]) -> bool:
    """Whether two rows of `cells`, `trials` or `baselines` have the same cell, recipe and learning rate."""
    alike = all(one[column] == other[column] for column in (*CELL, "recipe"))
    return alike and math.isclose(one["learning_rate"], other["learning_rate"])


def table_of(tables: dict[str, Any], name: str) -> dict[str, Any]:
    """A table of a spec or of provenance; empty if there is none of that name, or another type in its place."""
    table = tables.get(name)
    return table if isinstance(table, dict) else {}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dictionaries."""
    return frame.to_dict("records")  # type: ignore[return-value]


def _filled(frame: pd.DataFrame, **defaults: Any) -> pd.DataFrame:
    """The frame with defaults for what is empty, or what an older program did not know."""
    typed = {name: frame[name].astype(object if isinstance(value, str) else float) for name, value in defaults.items()}
    return frame.assign(**{name: column.mask(column.isna(), defaults[name]) for name, column in typed.items()})


def _read(table: str, folder: Path) -> pd.DataFrame:
    frame: pd.DataFrame = pa.concat_tables(_pieces(table, folder / FOLDERS[table])).to_pandas()
    # A resumed worker repeats the rows that it had not yet saved; the numbers are the same, so either row will do.
    keys = schema.KEYS[table]
    return frame.drop_duplicates(keys, keep="last").sort_values(keys, ignore_index=True)


def _pieces(table: str, folder: Path) -> list[pa.Table]:
    """The parts of a table. A running study may merge some after they were listed; then they are listed again."""
    for remaining in reversed(range(TRIES)):
        try:
            # The newest first: they are the next to be merged, and the oldest take longest to read.
            pieces = [_piece(file, table) for _, _, file in reversed(parts(folder))]
            return pieces[::-1] or [TABLES[table].empty_table()]
        except FileNotFoundError as error:
            if not remaining:
                advice = "move it away to continue without it"
                raise ResultsError(f"{error.filename}: listed, but not there; {advice}") from error
    raise AssertionError("unreachable")


def _piece(file: Path, table: str) -> pa.Table:
    """The rows of one file, in the table's columns."""
    try:
        return read_rows(file, table)
    except FileNotFoundError:
        raise
    except (OSError, DamagedError) as error:
        message = str(error) if isinstance(error, DamagedError) else f"{file}: cannot be read ({error})"
        advice = f"`study resume {file.parents[1]}` runs its trials again, or move it away to read the others"
        raise ResultsError(f"{message}; {advice}") from error


def read_rows(file: Path, table: str) -> pa.Table:
    """The rows of a part of a table, in the table's columns.

    Raises:
        DamagedError: as `read_part`, and if it is not a part of that table.
        ResultsError: if another version of this program wrote it.
    """
    piece, columns = read_part(file), TABLES[table]
    version = (piece.schema.metadata or {}).get(b"version", b"none").decode(errors="replace")
    if version != str(schema.SCHEMA_VERSION):
        raise ResultsError(
            f"{file}: written with schema version {version}, but this program reads version {schema.SCHEMA_VERSION}; "
            f"read it with the program that wrote it, or run the study again"
        )
    absent = [column for column in columns if column.name not in piece.schema.names]
    if missing := [column.name for column in absent if not column.nullable]:
        raise DamagedError(f"{file}: not a {table} table, because it lacks {', '.join(missing)}")
    for new in absent:  # an older program knew fewer columns
        piece = piece.append_column(new, pa.nulls(len(piece), new.type))
    try:
        return piece.select(columns.names).cast(columns)
    except (pa.ArrowException, ValueError) as error:
        raise DamagedError(f"{file}: not a {table} table: {str(error).splitlines()[0]}") from error
