"""Pictures: plot_schedule's, and the README's."""

import json
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_opt.benchmarks import picture

import mlx_opt
from mlx_opt.tools import plot

FIGURES = Path(__file__).resolve().parents[1] / "docs/figures/adamw-gpt2.json"


def drawn(schedule, steps):
    """The x and y values of each line."""
    [axes] = mlx_opt.plot_schedule(schedule, steps).axes
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def test_the_values_are_those_of_the_steps():
    schedule = mlx_opt.linear_schedule(0.0, 1.0, 4)
    assert drawn(schedule, 6) == [([0, 1, 2, 3, 4, 5], [0, 0.25, 0.5, 0.75, 1, 1])]


def test_a_schedule_gets_what_an_optimizer_gives_it():
    seen = []

    def schedule(step):
        seen.append(step)
        return mx.array(0.1)

    mlx_opt.SGD(schedule).apply_gradients({"w": mx.ones(1)}, {"w": mx.ones(1)})
    mlx_opt.plot_schedule(schedule, 1)
    assert {(x.dtype, x.shape, x.item()) for x in seen} == {(mx.uint64, (), 0)}


def test_each_number_of_a_sequence_is_a_line():
    lines = drawn(lambda step: (0.9, step * 0.5), 3)
    assert [y for _, y in lines] == [[0.9, 0.9, 0.9], [0, 0.5, 1]]


def test_a_long_schedule_is_sampled_from_its_first_step_to_its_last(monkeypatch):
    monkeypatch.setattr(plot, "MOST_POINTS", 5)
    assert drawn(lambda step: step, 1001) == [([0, 250, 500, 750, 1000],) * 2]


def test_the_picture_can_be_written(tmp_path):
    mlx_opt.plot_schedule(mlx_opt.cosine_decay(1.0, 10), 10).savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_schedule_is_refused():
    with pytest.raises(TypeError, match="schedule: expected a callable, got float"):
        mlx_opt.plot_schedule(0.1, 10)
    with pytest.raises(ValueError, match="steps: expected 1 or more, got 0"):
        mlx_opt.plot_schedule(lambda step: 0.1, 0)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    with pytest.raises(ImportError, match=r"needs matplotlib: pip install 'mlx-opt\[bench\]'"):
        mlx_opt.plot_schedule(lambda step: 0.1, 10)


@pytest.mark.skipif(not FIGURES.is_file(), reason="the figures are not beside the tests")
def test_the_readmes_picture_has_the_figures_of_its_file():
    figures = json.loads(FIGURES.read_text())
    for axes, panel in zip(picture.draw(figures).axes, figures["panels"], strict=True):
        values = panel["values"].values()
        measured = [v for by_peer in values for peer, v in by_peer.items() if peer != "limit"]
        assert [bar.get_width() for bar in axes.patches] == measured
        limits = {x for line in axes.lines for x in line.get_xdata()}
        assert limits == {by_peer["limit"] for by_peer in values}
        assert {"machine", "date", "code", "source"} <= panel.keys()
