"""The comparison of how fast the rules learn."""

import json
import math

import pytest
from mlx_opt.benchmarks import convergence
from mlx_opt.benchmarks.convergence_tasks import TASKS, text_task

RATES = json.loads(convergence.RATES.read_text())["rates"]


@pytest.fixture(scope="module")
def short():
    task = text_task()
    return task._replace(steps=24, held_out=tuple(x[:8] for x in task.held_out))


@pytest.fixture(autouse=True)
def few_evaluations(monkeypatch):
    monkeypatch.setattr(convergence, "EVALUATIONS", 2)


def test_every_rule_has_a_rate_for_every_task():
    assert {task: set(of) for task, of in RATES.items()} == {
        task: set(convergence.CONTENDERS) for task in TASKS
    }


@pytest.mark.parametrize("name", ["AdamW", "AdamWScheduleFree"])
def test_a_rule_learns(short, name):
    run = convergence.train(short, name, RATES["text"][name], seed=0)
    assert len(run.losses) == 3  # before, in the middle and at the end
    assert run.losses[-1] < run.losses[0] - 0.7


def test_a_run_is_that_of_its_seed(short):
    task = short._replace(steps=6)
    runs = [convergence.train(task, "SGD", 0.1, seed).losses for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_tuning_goes_to_the_lowest_loss(short, monkeypatch):
    def train(task, name, rate, seed):
        loss = abs(math.log2(rate / 0.4)) if rate < 1 else math.inf
        return convergence.Run([0.0, loss], 0.0)

    monkeypatch.setattr(convergence, "train", train)
    tried = []
    assert convergence.best_rate(short, "SGD", lambda: tried.append(1)) == 0.4
    assert len(tried) == 5  # 0.05, 0.1, 0.2, 0.4 and 0.8
