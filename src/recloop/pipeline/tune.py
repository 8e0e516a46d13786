"""`recloop tune`: search a model's settings on the validation moments with Optuna.

The test split is never read. A study is a file in ``tuning/``; a later run with the same data and settings continues it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import tomli_w

from recloop.config import Config, seconds
from recloop.data.prepare import PreparedData, load
from recloop.errors import UserError
from recloop.features.state_history import StateHistory
from recloop.files import JsonTree
from recloop.models.base import is_closed_form, load_model, model_class
from recloop.models.search_space import Choice, Range, SearchSpace
from recloop.pipeline.model_fitting import base_manifest, build_tables, rows_before_cut, validation_arrays
from recloop.pipeline.training_steps import check_prepared
from recloop.progress import NullProgress, Progress
from recloop.project import Project
from recloop.settings import dump
from recloop.storage import locks
from recloop.training.baselines import ModelValidation, draft_bundle, fit_counts
from recloop.training.fit import Look, has_sequences, validate_network

if TYPE_CHECKING:
    import optuna

N_TRIALS: Final = 20
BUDGET: Final = "1h"
STARTUP_TRIALS: Final = 5
"""Random trials before the sampler models the results, and whole ones before a trial is pruned."""
FIRST_PRUNED_EPOCH: Final = 2
"""First epoch, counted from 1, after which a trial may be pruned: the first one says little of a rate."""


@dataclass(frozen=True)
class TuneResult:
    """Result of a study.

    Attributes:
        finished, pruned: Number of trials that ran to their end, and that were stopped after an epoch.
        configured: NDCG@10 of the configured settings on validation; None: their trial has no result.
        best: That of the best trial.
        settings: Settings of the best trial, by key of recloop.toml.
    """

    model: str
    finished: int
    pruned: int
    configured: float | None
    best: float
    settings: Mapping[str, Any]
    seconds: float

    def to_json(self) -> JsonTree:
        return {**vars(self), "settings": dict(self.settings)}

    def toml(self) -> str:
        """Return the lines of recloop.toml that set the best settings."""
        tree: JsonTree = {"model": {"name": self.model}}
        for key, value in self.settings.items():
            section, name = key.split(".")
            tree.setdefault(section, {})[name] = value
        return tomli_w.dumps(tree)


def tune(
    project: Project, name: str = "", trials: int = N_TRIALS, budget: str = BUDGET, progress: Progress | None = None
) -> TuneResult:
    """Search the settings of a model by NDCG@10 on the validation moments.

    The first trial has the configured settings. A trial that the budget cuts is repeated by the next run.

    Args:
        name: The model; empty: ``model.name``. trials: Trials of the study, with those of earlier runs.
        budget: Time of this run; each trial of a network trains for at most ``train.time_budget``.

    Raises:
        Locked: another search runs in this folder.
        UserError: Optuna is missing, the model has no search space, the split has no validation moments, or the budget
            ended before the first trial.
    """
    started, progress = time.monotonic(), progress or NullProgress()
    model = name or project.config.model.name
    space = search_space(model)
    deadline = started + seconds("--budget", budget)
    if trials < 1:
        raise UserError("--trials", trials, "at least 1 trial", f"--trials {N_TRIALS}")
    data = load(project)
    check_prepared(project, data)
    with locks.tune_lock(project.root):
        validation = _Validation(project, model, data)
        configured = _configured(project.config, model, space)
        study = _open_study(project, model, space, data)
        _repeat_interrupted(study)
        if not study.trials:
            study.enqueue_trial(configured)
        distributions = {key: _distribution(values, configured[key]) for key, values in space.items()}
        while _n_done(study) < trials and time.monotonic() < deadline:
            trial = study.ask(distributions)
            _run(study, trial, validation, deadline)
            progress.say("tune", _line(study, study.trials[trial.number], trials))
    return _result(study, model, budget, configured, time.monotonic() - started)


def search_space(model: str) -> SearchSpace:
    """Return the search space of a model.

    Raises:
        UserError: the model is unknown or declares no search space.
    """
    space: SearchSpace | None = getattr(model_class(model), "search_space", None)
    if not space:
        raise UserError("model.name", model, "a model with a `search_space`", "recloop tune sasrec")
    return space


class _Validation:
    """NDCG@10 of a model's settings on the validation moments of prepared data."""

    def __init__(self, project: Project, model: str, data: PreparedData) -> None:
        self.model = model
        self._config = project.config
        self._folder = project.tuning / f"{_file_name(model)}-trial"
        tables = build_tables(project, data)
        self._arrays = validation_arrays(project, tables, data)
        held = self._arrays.held
        if held is None or not len(held) or not project.config.split.validation_users:
            expected = "validation moments: users with a moment before the cut"
            raise UserError("split", "no validation moments", expected, "recloop doctor")
        self._closed_form = None
        if is_closed_form(model):
            past = StateHistory(rows_before_cut(data), data.users)
            counts, scorers = fit_counts(self._arrays, tables)
            manifest = base_manifest(project.config, tables, data.manifest.fingerprint, rows_before_cut(data), 0)
            draft = draft_bundle(project.config, tables, self._arrays, counts, scorers, manifest)
            self._closed_form = ModelValidation(draft, project.config, self._arrays, tables, past)
        elif not has_sequences(self._arrays):
            raise UserError("model.name", model, "a log with a user who has two moments", "recloop tune mf")

    def score(self, params: Mapping[str, Any], budget: float, on_look: Callable[[Look], None]) -> float | None:
        """Return NDCG@10; None if the budget ended before the settings' own budget.

        Args:
            params: Settings by key of recloop.toml. budget: Largest number of training seconds.
            on_look: Called after each validation of a network.
        """
        config = with_settings(self._config, self.model, params)
        if self._closed_form is not None:
            return self._closed_form.ndcg(self.model, config.model.options)
        own_budget = config.train.time_budget_seconds
        shutil.rmtree(self._folder, ignore_errors=True)  # of a killed run
        try:
            ndcg, stopped = validate_network(
                self.model, config.model.options, self._arrays, config, self._folder, min(budget, own_budget), on_look
            )
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        return None if stopped == "time_budget" and budget < own_budget else ndcg


def with_settings(config: Config, model: str, params: Mapping[str, Any]) -> Config:
    """Return the configuration with this model and these settings.

    Options of another model are dropped.
    """
    tree = config.model_dump(mode="json", by_alias=True)
    options = config.model.options if model == config.model.name else {}
    tree["model"] = {**options, "name": model}
    tree["stores"] = dict(config.stores)  # with the passwords, which a dump omits
    for key, value in params.items():
        section, name = key.split(".")
        tree[section][name] = value
    return Config.model_validate(tree)


def _configured(config: Config, model: str, space: SearchSpace) -> dict[str, Any]:
    """Return the configured value of each setting of a search space."""
    base = with_settings(config, model, {})
    configured = base.model_dump()
    configured["model"] = load_model(model, base.model.options).config.model_dump()
    values = {}
    for key in space:
        section, name = key.split(".")
        values[key] = configured[section][name]
    return values


def _run(study: optuna.Study, trial: optuna.Trial, validation: _Validation, deadline: float) -> None:
    """Run one trial and tell its result to the study."""
    from optuna import TrialPruned
    from optuna.trial import TrialState

    def on_look(look: Look) -> None:
        if look.at == "epoch" and look.ndcg is not None:
            trial.report(look.ndcg, look.epoch)
            if trial.should_prune():
                raise TrialPruned

    begin = time.monotonic()
    try:
        ndcg = validation.score(trial.params, deadline - begin, on_look)
    except TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except UserError as error:  # a loss that is not finite, or settings that exclude each other
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=TrialState.FAIL)
    else:
        if ndcg is None:
            study.tell(trial, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)
        else:
            study.tell(trial, ndcg)


def _open_study(project: Project, model: str, space: SearchSpace, data: PreparedData) -> optuna.Study:
    """Open the study of this model, data and configuration."""
    _check_optuna()
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    project.tuning.mkdir(exist_ok=True)
    fixed = dump(with_settings(project.config, model, {}))
    text = json.dumps([data.manifest.fingerprint, data.manifest.split_hash, model, fixed, repr(sorted(space.items()))])
    seed = project.config.train.seed
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(project.tuning / f"{_file_name(model)}.log"))),
        study_name=hashlib.sha256(text.encode()).hexdigest()[:16],
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=FIRST_PRUNED_EPOCH),
        direction="maximize",
        load_if_exists=True,
    )


def _check_optuna() -> None:
    """Import Optuna without its log lines.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("tune", "optuna is not installed", "the extra tune", 'pip install "recloop[tune]"') from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def _file_name(model: str) -> str:
    """Return a model's name or dotted path as the name of a file."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", model)


def _repeat_interrupted(study: optuna.Study) -> None:
    """Queue the trials of a killed run again."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)


def _distribution(values: Range | Choice, configured: Any) -> optuna.distributions.BaseDistribution:
    """Return Optuna's distribution of a setting; it includes the configured value."""
    from optuna import distributions

    if isinstance(values, Choice):
        return distributions.CategoricalDistribution(tuple(dict.fromkeys((*values.values, configured))))
    low, high = min(values.low, configured), max(values.high, configured)
    step = None if values.step is None or (configured - low) % values.step else values.step
    if isinstance(low, int) and isinstance(high, int):
        return distributions.IntDistribution(low, high, values.log, int(step or 1))
    return distributions.FloatDistribution(low, high, values.log, step)


def _n_done(study: optuna.Study) -> int:
    """Return the number of finished, pruned and refused trials."""
    return sum(trial.state.name in {"COMPLETE", "PRUNED"} or "error" in trial.user_attrs for trial in study.trials)


def _line(study: optuna.Study, trial: optuna.trial.FrozenTrial, trials: int) -> str:
    """Describe a finished trial in one line."""
    from optuna.trial import TrialState

    if trial.state == TrialState.COMPLETE:
        outcome = f"NDCG@10 {trial.value:.4f}"
    elif trial.state == TrialState.PRUNED:
        outcome = f"stopped after epoch {trial.last_step}"
    else:
        outcome = trial.user_attrs.get("error", "cut by the budget")
    settings = " ".join(f"{key}={_short(value)}" for key, value in trial.params.items())
    return f"{_n_done(study)} of {trials}: {outcome}; {settings}"


def _short(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else value


def _result(
    study: optuna.Study, model: str, budget: str, configured: Mapping[str, Any], n_seconds: float
) -> TuneResult:
    """Return the best settings of the study.

    Args:
        configured: The configured settings.

    Raises:
        UserError: no trial is finished.
    """
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not finished:
        errors = [trial.user_attrs["error"] for trial in study.trials if "error" in trial.user_attrs]
        if errors:  # the first one names its own fix
            raise UserError("model.name", model, f"settings that can be trained; {errors[0]}")
        expected = "time for one trial of at most train.time_budget"
        raise UserError("--budget", budget, expected, f"recloop tune {model} --budget {BUDGET}")
    best = max(finished, key=lambda trial: trial.values[0])  # the first one wins a tie
    return TuneResult(
        model=model,
        finished=len(finished),
        pruned=len(study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))),
        configured=next((trial.values[0] for trial in finished if trial.params == configured), None),
        best=best.values[0],
        settings={
            key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in best.params.items()
        },
        seconds=round(n_seconds, 1),
    )
