"""python -m mlx_opt selftest: what it says where all is right, and where something is not."""

import json
import os
import subprocess
import sys

import mlx.core as mx
import pytest

import mlx_opt
from mlx_opt.tools import selftest


def test_every_rule_is_right_here():
    done = subprocess.run(
        [sys.executable, "-m", "mlx_opt", "selftest"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "100"},  # in which no case is folded
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All rules are right." in done.stdout
    for rule, options in selftest.CASES:
        assert selftest.name_of(rule, options) in done.stdout
    assert "clip_grad_norm(max_norm=1.0)" in done.stdout
    assert f"mlx       {mx.__version__}" in done.stdout


@pytest.fixture
def one_case(monkeypatch):
    monkeypatch.setattr(selftest, "CASES", [("Lion", {"weight_decay": 0.1})])


def test_a_wrong_rule_is_told(one_case, monkeypatch, capsys):
    class Wrong(mlx_opt.Lion):
        def apply_gradients(self, gradients, parameters):
            new = super().apply_gradients(gradients, parameters)
            return {name: x * 1.01 for name, x in new.items()}

    monkeypatch.setattr(mlx_opt, "Lion", Wrong)
    assert selftest.main() == 1
    shown = capsys.readouterr().out
    assert "WRONG" in shown
    assert "problem: cpu: Lion(weight_decay=0.1) with float32: wrong" in shown


def test_wrong_clipping_is_told(one_case, monkeypatch, capsys):
    right = mlx_opt.clip_grad_norm

    def off(gradients, max_norm):
        clipped, norm = right(gradients, max_norm)
        return clipped, norm * (1 + 1e-5)

    monkeypatch.setattr(mlx_opt, "clip_grad_norm", off)
    assert selftest.main() == 1
    assert "clip_grad_norm(max_norm=1.0) with float16: wrong" in capsys.readouterr().out


def test_an_error_is_told_with_its_text(one_case, monkeypatch, capsys):
    def broken(learning_rate, **options):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(mlx_opt, "Lion", broken)
    assert selftest.main() == 1
    assert "with bfloat16: RuntimeError: no kernel" in capsys.readouterr().out


def test_a_result_that_is_not_a_number_is_wrong(one_case, monkeypatch):
    class Broken(mlx_opt.Lion):
        def apply_gradients(self, gradients, parameters):
            new = super().apply_gradients(gradients, parameters)
            return {name: x * mx.nan for name, x in new.items()}

    monkeypatch.setattr(mlx_opt, "Lion", Broken)
    assert not selftest.check("Lion", {}, "float32").right


def test_a_device_without_a_backend_is_told(one_case, monkeypatch, capsys):
    monkeypatch.setattr(selftest._ext, "available", lambda: False)
    assert selftest.main() == 1
    assert "problem: cpu: no backend of this build serves it" in capsys.readouterr().out


@pytest.mark.parametrize("width", [50, 80])
def test_the_table_fits_and_explains_its_figures(one_case, monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert selftest.main() == 0
    shown = capsys.readouterr().out.split("All is well.")[1]
    assert max(map(len, shown.splitlines())) <= width
    assert "Lion(weight" in shown and "bfloat16" in shown
    assert "1.00 is expected in float16 and bfloat16" in " ".join(shown.split())


def test_the_report_as_json(one_case, monkeypatch, capsys):
    class Broken(mlx_opt.Lion):
        def apply_gradients(self, gradients, parameters):
            new = super().apply_gradients(gradients, parameters)
            is_half = parameters["0"].dtype == mx.float16
            return {name: x * mx.nan if is_half else x for name, x in new.items()}

    monkeypatch.setattr(mlx_opt, "Lion", Broken)
    assert selftest.main(as_json=True) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == 1
    assert report["installation"]["facts"]["mlx"].startswith(mx.__version__)
    for device in report["devices"].values():
        row = device["Lion(weight_decay=0.1)"]
        assert row["float32"]["right"] and 0 <= row["float32"]["share"] <= 1
        assert row["float16"] == {"right": False, "share": None, "error": ""}
    wrong = [f"{name}: Lion(weight_decay=0.1) with float16: wrong" for name in report["devices"]]
    assert report["problems"] == wrong and "cpu" in report["devices"]
