"""Project folder in Python: the verbs of the command line as methods."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from recloop import loop
from recloop.api.fitted_recommender import renamed_argument
from recloop.api.ids import checked_n
from recloop.api.messages import python_errors
from recloop.data.doctor import label_report
from recloop.data.doctor.report import Report, build_report
from recloop.data.export import Exported, export
from recloop.data.frames import as_polars
from recloop.evaluation.table import EvaluationTable
from recloop.files import JsonTree
from recloop.ingest import bulk, item_sync
from recloop.ingest.bulk import IngestResult
from recloop.ingest.item_sync import SyncResult
from recloop.monitoring import experiment, report, verify
from recloop.monitoring.shadow_requirement import shadow_requirement
from recloop.pipeline import backup, migration, promotion, quarantine, rejected, retention, training_steps
from recloop.pipeline.forget import forget
from recloop.pipeline.quarantine import Quarantined
from recloop.pipeline.retention import Collection
from recloop.pipeline.tune import BUDGET, N_TRIALS, TuneResult, tune
from recloop.privacy.audit_rows import audit_rows
from recloop.privacy.person_export import export_person
from recloop.progress import ConsoleProgress, NullProgress, Progress
from recloop.project import Project, open_project
from recloop.recommend import loading
from recloop.records import SECOND, now
from recloop.release import transitions
from recloop.release.transitions import MIN_SHADOW_REQUESTS
from recloop.serve import offline
from recloop.storage import admin_token, api_keys, locks
from recloop.storage.audit import AuditCheck


@python_errors("project")
def open_folder(folder: str | Path = ".", progress: bool = False, **settings: Any) -> ProjectFolder:
    """Open a project folder.

    Args:
        progress: Print the steps of long methods to stderr.
        settings: Override recloop.toml: ``serve__port=9000``.
    """
    sets = [f"{name.replace('__', '.')}={value}" for name, value in settings.items()]
    return ProjectFolder(open_project(folder, sets), progress)


class ProjectFolder:
    """Project folder in Python, with the commands of the command line.

    `recloop init` makes the folder.
    """

    def __init__(self, project: Project, progress: bool = False) -> None:
        self.project = project
        self._progress: Progress = ConsoleProgress() if progress else NullProgress()

    @python_errors("project")
    def update(self, full: bool = False, reset_optimizer: bool = False, restart: bool = False) -> str:
        """Run one update and return the id of the bundle that it released.

        The first run makes its bundle live; a later one registers it. If no candidate passed the gates, the id is live's.

        Args:
            full: Train from scratch. reset_optimizer: Warm start with a fresh optimizer.
            restart: Repeat the first run and keep posted rows.
        """
        live = self.project.live_bundle_id()
        if live is None:
            loading.check_unused(self.project)
            return loop.first_run(self.project, self._progress).bundle.id
        return loop.update(self.project, self._progress, full, reset_optimizer, restart).bundle or live

    @python_errors("project")
    def prepare(self) -> Report:
        """Read, clean and split the log into ``data/``."""
        with locks.run_lock(self.project.root, "prepare"):
            return loop.collect(self.project, self._progress).report

    @python_errors("project")
    def train(self, name: str = "") -> str:
        """Train a model on ``data/`` and return the id of its registered bundle.

        ``name``: a model in place of ``model.name``.
        """
        model = loading.resolve_model(self.project, name)
        with locks.run_lock(self.project.root, "train"):
            return loop.train(self.project, self._progress, model).bundle.id

    @python_errors("project")
    def tune(self, name: str = "", trials: int = N_TRIALS, budget: str = BUDGET) -> TuneResult:
        """Search a model's settings on validation.

        ``settings`` of the result are keys of recloop.toml.

        Args:
            name: A model in place of ``model.name``. trials: Trials, with those of earlier calls.
            budget: Time of this call, such as ``"30m"``.
        """
        return tune(self.project, name, trials, budget, self._progress)

    @python_errors("project")
    def evaluate(self, *bundle_ids: str) -> EvaluationTable:
        """Evaluate these bundles, or the live one without an id."""
        return training_steps.evaluate_bundles(self.project, list(bundle_ids), self._progress)

    @renamed_argument("k", "n")
    @python_errors("project")
    def recommend(
        self,
        user_id: str | int,
        n: int | None = None,
        placement: str = "home",
        bundle: str = "",
        item: str | int = "",
        filter_seen: bool | None = None,
        min_new: float | None = None,
    ) -> JsonTree:
        """Recommend as the service does, without a running server.

        Args:
            n: List length; None: the length of the placement.
            bundle: A registered bundle; empty for the live one. item: The item of a list of similar items.
            filter_seen: Leave out what the user has taken. min_new: Smallest share of items new to the user, 0 to 1; None: the
                setting of the placement.
        """
        n = None if n is None else checked_n(n)
        return offline.recommend(self.project, str(user_id), n, placement, bundle, str(item), filter_seen, min_new)

    @python_errors("project")
    def status(self) -> JsonTree:
        """Return the live, shadow and experiment bundles, with the verdict."""
        state = loading.status(self.project)
        verdict, _ = experiment.current_verdict(self.project)
        needed = None
        if state["shadow"] is not None:
            needed = shadow_requirement(self.project, state["shadow"], MIN_SHADOW_REQUESTS)
        return {**state, "verdict": verdict and verdict.to_json(), "shadow_requirement": needed and needed.to_json()}

    @python_errors("project")
    def doctor(self, signals: bool = False) -> JsonTree:
        """Check the log and return the report.

        ``signals``: add events and examples for each event rule.
        """
        tree = build_report(self.project).to_json()
        return {**tree, **label_report.examine_signals(self.project).to_json()} if signals else tree

    @python_errors("project")
    def report(self, start: str = "", end: str = "", out: str = "") -> JsonTree:
        """Write an HTML report of evaluation and list health.

        ``start`` and ``end`` are ISO 8601; ``out`` is the file, empty for a name in ``reports/``.
        """
        return report.write(self.project, start, end, out)

    @python_errors("project")
    def verify(self, last: int = 1000) -> JsonTree:
        """Rebuild the newest logged decisions and compare them.

        The key ``unexplained`` counts the differences that nothing explains.
        """
        checked = verify.verify(self.project, last)
        verify.save_result(self.project, checked, now())
        return checked

    @python_errors("project")
    def ingest(self, rows: Any, url: str = "") -> IngestResult:
        """Add rows to the log, once per event_id.

        A folder opened with ``progress=True`` prints the rows that were not stored.

        Args:
            rows: A file, or a frame with the columns of the project's log.
            url: Post to this running service; empty: write the log of this folder.
        """
        with _as_file(rows, "rows") as file:
            return bulk.ingest(self.project, file, url, self._progress)

    @python_errors("project")
    def quarantine(
        self, where: str, reason: str, start: str = "", end: str = "", restore: bool = False, force: bool = False
    ) -> Quarantined:
        """Quarantine the rows that meet a condition, or restore them."""
        return quarantine.quarantine(self.project, where, reason, start, end, restore, force)

    @python_errors("project")
    def promote(self, bundle: str, to: str = "", reason: str = "") -> JsonTree:
        """Promote a bundle to ``shadow``, ``experiment`` or ``live`` (default)."""
        return promotion.promote(self.project, bundle, to, reason, self._progress)

    @python_errors("project")
    def rollback(self, reason: str = "") -> JsonTree:
        """Restore the previous live bundle."""
        return transitions.rollback(self.project, reason)

    @python_errors("project")
    def reject(self, bundle: str, reason: str = "") -> JsonTree:
        """Exclude a bundle permanently."""
        return transitions.reject(self.project, bundle, reason)

    @python_errors("project")
    def export(self, what: str, folder: str | Path, form: str = "parquet") -> Exported:
        """Write the split (parquet, hdf5) or the log (jsonl, parquet) into a folder."""
        return export(self.project, what, form, Path(folder))

    @python_errors("project")
    def sync_items(self, feed: Any, id_column: str = "", force: bool = False, dry_run: bool = False) -> SyncResult:
        """Bring the catalog to a feed of all items.

        Args:
            feed: A file, a URL, or a frame with one row per item.
            id_column: Column of the item id; empty: that of the project's items, otherwise ``id``.
            force: Hide more than 20 % of the visible items.
            dry_run: Count the changes only.
        """
        with _as_file(feed, "feed") as file:
            return item_sync.sync(self.project, file, id_column, force, dry_run)[0]

    @python_errors("project")
    def export_person(self, user_id: str | int) -> JsonTree:
        """Collect all that is stored of a user."""
        return export_person(self.project, str(user_id))

    @python_errors("project")
    def rejected(self, newest: int = 1_000) -> JsonTree:
        """Return the newest rows that were not stored, with route, time and reason."""
        return rejected.listing(self.project, newest)

    @python_errors("project")
    def replay_rejected(self, *ids: int) -> JsonTree:
        """Check rejected events again, all without ids, and store the valid ones."""
        return rejected.replay(self.project, ids)

    @python_errors("project")
    def drop_rejected(self, *ids: int) -> int:
        """Delete rejected rows of requests, all without ids, and return their number."""
        return rejected.drop(self.project, ids)

    @python_errors("project")
    def forget(self, *user_ids: str | int) -> JsonTree:
        """Erase users at once from ``store/``; the next update erases the rest."""
        return forget(self.project, [str(user) for user in user_ids])

    @python_errors("project")
    def audit(self, user_id: str | int = "") -> list[JsonTree]:
        """Return the rows of the audit log, or those of one person, oldest first."""
        return audit_rows(self.project, str(user_id))

    @python_errors("project")
    def check_audit(self) -> AuditCheck:
        """Check the hash chain of the audit log; ``problem`` is empty for a whole one."""
        return self.project.open_control().check_audit()

    @python_errors("project")
    def gc(self, dry_run: bool = False) -> Collection:
        """Remove expired bundles, runs and rows; with ``dry_run`` only list them."""
        with locks.run_lock(self.project.root, "gc"):
            return retention.collect(self.project, dry_run)

    @python_errors("project")
    def token(self, new: bool = False) -> str:
        """Return the project's admin token; ``new`` replaces it."""
        root = self.project.root
        return admin_token.renew(root, self.project.open_control()) if new else admin_token.ensure(root)

    @python_errors("project")
    def backup(self, to: str | Path) -> JsonTree:
        """Copy the project into a new folder while it is served and updated.

        Raises:
            UserError: the folder exists.
            Refused: ``data/`` changed during each attempt.
        """
        return backup.backup(self.project, Path(to), self._progress).to_json()

    @python_errors("project")
    def migrate(self, backup_to: str | Path = "", dry_run: bool = False) -> JsonTree:
        """Migrate the stores to the newest schemas, after a backup into a new folder."""
        return migration.migrate(self.project, str(backup_to), dry_run, self._progress).to_json()

    @python_errors("project")
    def keys(self) -> list[JsonTree]:
        """Return the API keys with scopes, expiry and last use, without their secrets."""
        root = self.project.root
        return [api_keys.to_json(root, key) for key in api_keys.read(root) or ()]

    @python_errors("project")
    def add_key(
        self,
        name: str,
        scopes: Iterable[str],
        expires: datetime | None = None,
        rate: float | None = None,
        origins: Iterable[str] = (),
        placements: Iterable[str] = (),
        event_types: Iterable[str] = (),
    ) -> str:
        """Add an API key and return its secret, which is not stored.

        Args:
            scopes: One or more of ``read``, ``ingest`` and ``admin``, or ``page`` alone.
            expires: Time with zone from which the key is refused; None: never.
            rate: Largest number of requests per second and serving process, of a page key for each user.
            origins, placements, event_types: Limits of a page key; empty: the service's own origin, all, all.

        Raises:
            UserError: the name is in use or invalid, a scope is unknown, or the file of keys is damaged.
        """
        stamp = None if expires is None else round(expires.timestamp() * SECOND)
        page = api_keys.PageLimits(tuple(origins), tuple(placements), tuple(event_types))
        root, control = self.project.root, self.project.open_control()
        return api_keys.add(root, control, name, scopes, stamp, rate, page)[1]

    @python_errors("project")
    def revoke_key(self, name: str) -> None:
        """Revoke an API key; a running service refuses it within a second.

        Raises:
            UserError: the key does not exist.
        """
        api_keys.revoke(self.project.root, self.project.open_control(), name)

    @python_errors("project")
    def serve(self, host: str = "", port: int | None = None) -> None:
        """Serve recommendations over HTTP until SIGTERM or SIGINT, without the console.

        ``host`` and ``port`` override the settings; port 0 selects a free port.
        """
        from recloop.serve import app  # loads the HTTP stack, which other methods do not need

        settings = self.project.config.serve
        app.run(self.project, host or settings.host, settings.port if port is None else port)

    def __repr__(self) -> str:
        return f"<ProjectFolder: {self.project.root}>"


@contextmanager
def _as_file(rows: Any, name: str) -> Iterator[str]:
    """Path of a file, or of a temporary Parquet file of a frame."""
    if isinstance(rows, str | Path):
        yield str(rows)
        return
    frame = as_polars(rows, name)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.parquet"
        frame.write_parquet(file)
        yield str(file)
