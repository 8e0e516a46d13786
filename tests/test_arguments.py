"""Arguments and settings out of bounds: exit 2 before any work, with and without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import recloop
from recloop.errors import UserError
from recloop.models.base import MODELS, check_model
from recloop.project import Project
from recloop.settings import build

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("n", ["0", "-1", "1001", "ten"])
def test_recommend_n_out_of_bounds_exits_2(project: Project, cli: Cli, n: str) -> None:
    code, out, err = cli("-C", project.root, "recommend", "u05", "-n", n)
    assert (code, out) == (2, ""), err
    assert "-n" in err.splitlines()[-1]


def test_python_n_out_of_bounds_is_refused(project: Project) -> None:
    with pytest.raises(UserError, match="from 1 to 1000"):
        recloop.open(project.root).recommend("u05", n=0)
    rows = pl.DataFrame({"user_id": ["a", "b"] * 20, "item_id": ["x", "y"] * 20, "timestamp": range(10**9, 10**9 + 40)})
    fitted = recloop.fit(rows, model="popular", config={"clean": {"burst": "off"}})
    for call in (lambda: fitted.recommend(["a"], n=0), lambda: fitted.similar_items(["x"], n=-1)):
        with pytest.raises(UserError, match="from 1 to 1000"):
            call()
    for call in (lambda: fitted.recommend(["a"], k=3), lambda: fitted.similar_items(["x"], k=3)):
        with pytest.raises(TypeError, match="expected n, the new name of k; fix: n=3"):
            call()


@pytest.mark.parametrize(
    "setting",
    [
        "evaluate.k=[0]", "evaluate.k=[]", "baselines.half_life=0", "baselines.half_life=-30", "baselines.half_life=inf",
        "train.lr=inf", "train.seed=-1", 'train.time_budget="soon"', "clean.burst={events = 10, seconds = inf}",
        "release.gates.max_ndcg_loss=-1", "release.gates.max_latency_ratio=0", "release.gates.max_slice_loss=nan",
    ],
)  # fmt: skip
def test_setting_out_of_bounds_is_refused(setting: str) -> None:
    with pytest.raises(UserError) as refused:
        build({}, [setting], environment={})
    assert setting.partition("=")[0].partition(".")[0] in refused.value.name


def test_every_without_a_unit_names_an_option_that_works(project: Project, cli: Cli) -> None:
    code, _, err = cli("-C", project.root, "update", "--every", "5")
    assert code == 2
    assert err.splitlines()[-1].endswith("try: --every 10m")


BAD_MODELS = [
    ("sasrek", "nearest: sasrec"),
    ("", "one of popular"),
    ("recloop.models.covisitation:CoVisit", "nearest: recloop.models.covisitation:CoVisitation"),
    ("recloop.models.sasrec:SASREC", "nearest: recloop.models.sasrec:SASRec"),
    ("no.such.module:Model", "an importable module no.such.module"),
    ("recloop.records:Event", "a class with a Config"),
    ("os.path:join", "a class with a Config"),
    ("recloop.models.sasrec:", "one of popular"),
]
WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "lightning", "onnx", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

sys.meta_path.insert(0, Refuse())
from recloop.errors import UserError
from recloop.models.base import check_model
for name in sys.argv[1:]:
    try:
        check_model(name)
        print("a model")
    except UserError as error:
        print(error)
"""


@pytest.mark.parametrize(("name", "said"), BAD_MODELS)
def test_check_model_not_a_model_is_refused(name: str, said: str) -> None:
    with pytest.raises(UserError, match=r"^model\.name=") as refused:
        check_model(name)
    assert said in str(refused.value)


def test_check_model_without_torch_refuses_equal_names() -> None:
    good = [*MODELS, "recloop.models.sasrec:SASRec", "recloop.models.covisitation:CoVisitation"]
    names = [*good, *(name for name, _ in BAD_MODELS)]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *names], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[: len(good)] == ["a model"] * len(good)
    for line, (name, said) in zip(lines[len(good) :], BAD_MODELS, strict=True):
        assert line.startswith(f"model.name={name}: expected"), line
        assert said in line


@pytest.mark.parametrize("verb", ["update", "train"])
def test_model_name_misspelt_exits_2_before_any_work(simulated_shop_folder: Path, cli: Cli, verb: str) -> None:
    code, out, err = cli("-C", simulated_shop_folder, verb, "--set", "model.name=sasrek")
    assert (code, out) == (2, ""), err
    assert "nearest: sasrec" in err.splitlines()[-1]
    assert sorted(path.name for path in simulated_shop_folder.iterdir() if path.is_dir()) in ([], ["store"])


def test_model_name_misspelt_with_a_live_bundle_exits_2(project: Project, cli: Cli) -> None:
    code, out, err = cli("-C", project.root, "update", "--set", "model.name=sasrek")
    assert (code, out) == (2, ""), err
    assert "model.name=sasrek" in err.splitlines()[-1]
