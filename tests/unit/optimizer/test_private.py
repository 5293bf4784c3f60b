"""Private training: what it costs, against two other accountants; what is drawn; resuming."""

from __future__ import annotations

from pathlib import Path

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld
from opacus.accountants import RDPAccountant
from train_world import Killed, TrainWorld, same

from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.servers.optimizer.train import loop, private

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.mark.parametrize(
    ("epsilon", "sample", "steps", "delta"),
    [(1.0, 0.01, 1000, 1e-5), (8.0, 0.1, 50, 1e-4), (0.3, 0.005, 200, 1e-6)],
)
def test_epsilon_against_other_accountants(
    epsilon: float, sample: float, steps: int, delta: float
) -> None:
    noise = private.noise_for(epsilon, sample, steps, delta)
    found = private.spent(noise, sample, steps, delta)
    assert 0.98 * epsilon < found <= epsilon
    opacus = RDPAccountant()
    opacus.history = [(noise, sample, steps)]
    assert found == pytest.approx(opacus.get_epsilon(delta), rel=0.02)
    exact = pld.PLDAccountant()  # numerically exact, so never above a bound that holds
    exact.compose(
        dp_accounting.PoissonSampledDpEvent(sample, dp_accounting.GaussianDpEvent(noise)), steps
    )
    assert 0.5 * found < exact.get_epsilon(delta) <= found * 1.001


def spec(epsilon: float = 3.0) -> pb.Train:
    return pb.Train(
        name="m",
        data=pb.TrainingData(dataset="d", target="kind"),
        mlp=pb.Mlp(hidden=[8]),
        training=pb.Training(
            learning_rate=0.02, batch=40, accumulate=2, steps=30, checkpoint_steps=7
        ),
        privacy=pb.Privacy(epsilon=epsilon),
    )


def table() -> dict[str, object]:
    random = np.random.default_rng(0)
    kind = random.integers(0, 2, 400)
    return {"a": random.normal(3.0 * kind, 1), "b": random.normal(-2.0 * kind, 1), "kind": kind}


def test_killed_and_resumed_costs_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_REPORT_S", 0.0)
    whole = TrainWorld(tmp_path / "whole", "train", spec(), table(), table())
    outcome = whole.train()
    assert 2.9 < outcome.epsilon <= 3.0
    assert outcome.validation_loss < whole.told[0].loss
    broken = TrainWorld(tmp_path / "broken", "train", spec(), table(), table())
    (broken.work / "secret").write_bytes((whole.work / "secret").read_bytes())
    with pytest.raises(Killed):
        broken.train(17)
    again = broken.train()
    assert (again.epsilon, again.loss) == (outcome.epsilon, outcome.loss)
    assert same(whole.weights("train"), broken.weights("train"))
    spent = [told.epsilon for told in whole.told]
    assert spent == sorted(spent) and spent[0] < spent[-1] == outcome.epsilon
    other = TrainWorld(tmp_path / "other", "train", spec(), table())
    other.train()  # another secret: other noise
    assert not same(whole.weights("train"), other.weights("train"))


def test_batches_are_poisson_samples_and_gradients_are_cut(tmp_path: Path) -> None:
    world = TrainWorld(tmp_path, "train", spec(), table())
    examples = world.shop.prepare(world.splits)
    setup = world.shop.setup(examples)
    from llmos.servers.optimizer.train.gate import Gate
    from llmos.servers.optimizer.train.place import Place
    from llmos.servers.optimizer.train.plan import Plan

    plan = Plan.of(world.spec.training, 400, 1)
    made = private.PrivateLoop(
        pb.Privacy(epsilon=3), b"s" * 32, setup.network, setup.objective, examples.train, None,
        plan, Place(), Gate(tmp_path, world.stop), tmp_path, lambda now: None,
    )  # fmt: skip
    sizes = [len(made.step_rows(step)) for step in range(200)]
    assert np.mean(sizes) == pytest.approx(40, abs=2) and 4 < np.std(sizes) < 8
    assert not np.array_equal(made.step_rows(0), made.step_rows(1))
    made.compute(0, made.step_rows(0))
    made._private.clip_and_accumulate()
    total = sum(float((p.summed_grad**2).sum()) for p in made._private.params) ** 0.5
    assert 0 < total <= sizes[0]  # each row has at most length 1
    made.compute(1, np.empty(0, np.int64))  # an empty sample is noise alone
    made.advance(1)
