import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib import loaders, models, paths
from lib.checks import InputError
from lib.models import Recipe, Spec, training

RECIPE = Recipe(epochs=3, batch_size=50, lr=0.05)


def tiny_dataset(count=200, classes=10):
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    images = torch.randint(0, 60, (count, 3, 32, 32), generator=g, dtype=torch.uint8)
    images[torch.arange(count), :, labels] += 150  # a bright row tells the class
    split = loaders.Split(images, labels)
    return loaders.Dataset("tiny", split, split, "0" * 64)


def loader_of(dataset, generator, augment=True):
    return loaders.MemoryLoader(
        dataset.train,
        50,
        normalise=loaders.CIFAR,
        shuffle=True,
        augment=augment,
        drop_last=True,
        generator=generator,
    )


def small(seed=0):
    return models.build("vgg11", width=0.0625, norm="batch", seed=seed)


def test_training_learns():
    dataset, generator = tiny_dataset(), torch.Generator().manual_seed(0)
    model, recipe = small(), Recipe(epochs=12, batch_size=50, lr=0.05, augment=False)
    losses = models.train(model, loader_of(dataset, generator, False), recipe, generator=generator, progress=False)
    accuracy, loss = models.evaluate(model, loaders.MemoryLoader(dataset.test, 50, normalise=loaders.CIFAR))
    assert losses[-1] < 0.5 * losses[0]
    assert accuracy > 0.5
    assert not model.training


def test_the_schedule_rises_for_five_per_cent_and_falls_to_zero(monkeypatch):
    rates = []
    step = torch.optim.SGD.step

    def spy(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    generator = torch.Generator().manual_seed(0)
    recipe = Recipe(epochs=10, batch_size=50, lr=0.08)
    models.train(small(), loader_of(tiny_dataset(), generator), recipe, generator=generator, progress=False)
    assert len(rates) == 40
    assert rates[0] == 0
    assert max(rates) == rates[2] == pytest.approx(0.08)
    assert rates[-1] == pytest.approx(0.08 / 38)


class Interrupt(Exception):
    pass


def test_resumed_training_ends_in_the_same_weights(tmp_path):
    dataset, resume = tiny_dataset(), tmp_path / "state.resume"

    def run(resume=None, stop_after=None):
        generator = torch.Generator().manual_seed(5)
        model, loader = small(3), loader_of(dataset, generator)
        if stop_after is not None:
            original, epochs = type(loader).__iter__, []

            class Stopping(loaders.MemoryLoader):
                def __iter__(self):
                    epochs.append(1)
                    if len(epochs) > stop_after:
                        raise Interrupt
                    return original(self)

            loader.__class__ = Stopping
        losses = models.train(model, loader, RECIPE, generator=generator, resume=resume, progress=False)
        return model.state_dict(), losses

    undisturbed, losses = run()
    with pytest.raises(Interrupt):
        run(resume, stop_after=2)
    assert resume.exists()
    resumed, again = run(resume)
    assert again == losses
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


KILLED = """
import sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from tests.models.test_training import tiny_dataset
from lib import models as training
from lib.models import Recipe, Spec
spec = Spec("vgg11", 0, Recipe(epochs=6, batch_size=50, lr=0.05), width=0.0625, norm="batch")
print(training.trained(spec, tiny_dataset(2000), path=Path({path!r}), progress=False).path, flush=True)
"""


def test_kill_minus_nine_then_rerun_gives_the_same_checkpoint_hash(tmp_path):
    """The whole way: a process killed in the middle of training, and one that was left alone."""

    def start(name):
        environment = os.environ | {"FUSEBOOK_CHECKPOINTS": str(tmp_path / name), "OMP_NUM_THREADS": "1"}
        script = KILLED.format(tests=os.path.dirname(__file__), path=str(tmp_path / name / "net.safetensors"))
        return subprocess.Popen([sys.executable, "-c", script], env=environment, cwd=paths.ROOT)

    left_alone = start("left-alone")
    killed = start("killed")
    while not list((tmp_path / "killed").glob("local/[!.]*.resume")):
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "net.safetensors").exists()
    assert start("killed").wait() == left_alone.wait() == 0
    hashes = [paths.file_sha256(tmp_path / name / "net.safetensors") for name in ("killed", "left-alone")]
    assert hashes[0] == hashes[1]
    assert not list((tmp_path / "killed").glob("local/*.resume"))


def test_a_foreign_resume_file_is_refused(tmp_path):
    generator, resume = torch.Generator().manual_seed(0), tmp_path / "x.resume"
    loader = loader_of(tiny_dataset(), generator)
    models.train(small(), loader, Recipe(epochs=1, batch_size=50), generator=generator, resume=resume, progress=False)
    with pytest.raises(InputError, match="another training"):
        models.train(small(), loader, RECIPE, generator=generator, resume=resume, progress=False)


@pytest.mark.parametrize("content", [{}, {"a": 1}, {"model": {}}, torch.rand(3), [1, 2], "text", "another width"])
def test_a_resume_file_of_something_else_is_refused(content, tmp_path):
    generator, resume = torch.Generator().manual_seed(0), tmp_path / "x.resume"
    if content == "another width":
        options = {"generator": generator, "resume": resume, "progress": False}
        other = models.build("vgg11", width=0.1, norm="batch")
        models.train(other, loader_of(tiny_dataset(), generator), RECIPE, **options)
    else:
        torch.save(content, resume)
    with pytest.raises(InputError, match="x.resume belongs to another training") as caught:
        models.train(
            small(), loader_of(tiny_dataset(), generator), RECIPE, generator=generator, resume=resume, progress=False
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("images", "told"), [(40, "at least 50 training"), (50, "at least 100 training")])
def test_fewer_than_two_steps_are_no_training(images, told):
    generator = torch.Generator().manual_seed(0)
    loader = loader_of(tiny_dataset(images), generator)
    with pytest.raises(InputError, match=f"{told} images .limit_train."):
        models.train(small(), loader, Recipe(epochs=1, batch_size=50), generator=generator, progress=False)


def test_two_steps_train():
    generator, model = torch.Generator().manual_seed(0), small()
    before = models.state_of(model)
    loader = loader_of(tiny_dataset(100), generator)
    models.train(model, loader, Recipe(epochs=1, batch_size=50), generator=generator, progress=False)
    assert not torch.equal(before["classifier.weight"], model.state_dict()["classifier.weight"])


def test_trained_saves_once_with_a_sidecar_and_then_reuses(tmp_path, capsys):
    dataset, spec = tiny_dataset(), Spec("vgg11", 1, RECIPE, width=0.0625, norm="batch")
    path = models.trained(spec, dataset, path=tmp_path / "net.safetensors", half=True, progress=False).path
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert sidecar["spec"]["seed"] == 1
    assert sidecar["spec"]["recipe"]["lr"] == 0.05
    assert sidecar["dataset"] == "tiny"
    assert sidecar["sha256"] == paths.file_sha256(path)
    state = load_file(path)
    assert state["features.0.weight"].dtype == torch.float16
    model = models.load_state(spec.build(), state)
    accuracy, _ = models.evaluate(model, loaders.MemoryLoader(dataset.test, 1000, normalise=loaders.CIFAR))
    assert accuracy == sidecar["test_accuracy"]
    before = path.stat().st_mtime_ns
    models.trained(spec, dataset, path=path, progress=False)
    assert path.stat().st_mtime_ns == before
    assert "already trained" in capsys.readouterr().out


def test_skewed_indices_keep_all_of_some_classes_and_a_share_of_the_others():
    labels = torch.arange(1000) % 10
    chosen = labels[models.skewed_indices(labels, (0, 1, 2, 3, 4), 0.1, seed=0)]
    assert [int((chosen == c).sum()) for c in range(10)] == [100] * 5 + [10] * 5
    again = labels[models.skewed_indices(labels, (0, 1, 2, 3, 4), 0.1, seed=0)]
    assert torch.equal(chosen, again)


def test_evaluate_weighs_images_and_not_batches():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    x, y = (
        torch.randn(7, 1, 2, 2, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 0, 1, 2, 0]),
    )
    whole = models.evaluate(model, [(x, y)])
    uneven = models.evaluate(model, [(x[:6], y[:6]), (x[6:], y[6:])])
    assert uneven == pytest.approx(whole)
    assert whole[1] == pytest.approx(torch.nn.functional.cross_entropy(model(x), y).item())


@pytest.mark.parametrize("label", [3, -1, -100])
def test_a_label_that_is_no_class_of_the_network_is_refused(label):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    with pytest.raises(InputError, match=f"a label is {label}; accepted: 0 … 2"):
        models.evaluate(model, [(torch.rand(2, 1, 2, 2), torch.tensor([0, label]))])


@pytest.mark.parametrize("use", [models.normalisation, lambda name: models.open_dataset("mnist-5k", name)])
def test_a_model_that_is_not_registered_is_told_where_to_register(use):
    told = r"unknown model 'mine'; accepted: simplenet, .* registered .* lib\.models\.architectures$"
    with pytest.raises(InputError, match=told):
        use("mine")


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_pickle_with_code_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="never executed") as error:
        models.read_state(tmp_path / "evil.pt")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_checkpoints_are_told_by_content_and_not_by_suffix(tmp_path):
    state = {"w": torch.arange(6.0).reshape(2, 3)}
    models.save_checkpoint(tmp_path / "a.safetensors", state, {})
    (tmp_path / "a.safetensors").rename(tmp_path / "a.dat")
    torch.save(state, tmp_path / "b.safetensors")
    for name in ("a.dat", "b.safetensors"):
        assert torch.equal(models.read_state(tmp_path / name)["w"], state["w"])
    (tmp_path / "c.pt").write_bytes(b"neither of the two")
    with pytest.raises(InputError, match="cannot be read"):
        models.read_state(tmp_path / "c.pt")


def wrapped(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("write", [torch.save, lambda state, path: save_file(state, path)])
def test_names_of_data_parallel_lose_their_prefix(write, tmp_path):
    state = models.state_of(small())
    write(wrapped(state), tmp_path / "net.pt")
    found = models.fitting(small(), models.read_state(tmp_path / "net.pt"))
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
    write(wrapped(state) | {"scale": torch.ones(1)}, tmp_path / "net.pt")  # not all
    with pytest.raises(InputError, match=r"features.0.weight is missing; .*; module\.\S+ is unexpected"):
        models.fitting(small(), models.read_state(tmp_path / "net.pt"))


def test_the_state_dict_of_a_training_checkpoint_is_taken(tmp_path):
    state, path = models.state_of(small()), tmp_path / "net.pt"
    torch.save({"state_dict": wrapped(state), "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    found = models.read_state(path)
    assert found.keys() == wrapped(state).keys() and all(torch.equal(found[f"module.{n}"], state[n]) for n in state)
    for held, told in (
        ({"state_dict": {"w": 3}, "epoch": 3}, "no state dict"),
        ({"state_dict": torch.ones(2), "epoch": 3}, "no state dict"),
        ({"state_dict": {"w": torch.tensor(float("nan"))}}, "NaN or Inf in w"),
        ({"state_dict": {"w": torch.ones(2)}, "epoch": Evil()}, "never executed"),
    ):
        torch.save(held, path)
        with pytest.raises(InputError, match=told):
            models.read_state(path)


def test_no_more_than_three_misfits_are_listed(tmp_path):
    model = small()
    with pytest.raises(InputError, match=r"(; [^;]+){2}; and \d+ more$") as error:
        models.load_state(model, {})
    assert len(str(error.value)) < 200
    state = {name: torch.full_like(tensor, torch.nan) for name, tensor in model.named_parameters()}
    with pytest.raises(InputError, match=rf"in [^,]+, [^,]+, [^,]+, and {len(state) - 3} more; accepted"):
        models.save_checkpoint(tmp_path / "net.safetensors", state, {})


@pytest.mark.parametrize("name", ["net", "net.v1", "net.pt", "net.safetensors.json"])
def test_checkpoints_are_saved_under_names_whose_sidecars_cannot_collide(name, tmp_path):
    with pytest.raises(InputError, match="does not end in .safetensors"):
        models.save_checkpoint(tmp_path / name, {"w": torch.ones(2)}, {})
    with pytest.raises(InputError, match="does not end in .safetensors"):  # before it is trained
        models.trained(Spec("vgg11", 0, RECIPE), tiny_dataset(), path=tmp_path / name, progress=False)
    assert not list(tmp_path.iterdir())
    for version in ("v1", "v2"):
        models.save_checkpoint(tmp_path / f"net.{version}.safetensors", {"w": torch.rand(3)}, {})
    assert models.read_state(tmp_path / "net.v1.safetensors").keys() == {"w"}


def test_loading_keeps_the_versions_of_the_modules():
    """Modules tell by them how a state was saved; without, mnasnet0_5 takes it for an old one."""
    from torchvision.models import mnasnet0_5

    model = mnasnet0_5(num_classes=2)
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    found = models.load_state(model, state).state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_model_can_take_the_tensors_of_a_state_themselves():
    model, state = torch.nn.Linear(3, 2), {"weight": torch.ones(2, 3), "bias": torch.ones(2).double()}
    models.load_state(model, state, assign=True)
    assert model.weight.data_ptr() == state["weight"].data_ptr()
    assert model.bias.dtype == torch.float32 and torch.equal(model.bias, torch.ones(2))


def test_a_state_that_does_not_fit_is_refused_with_the_names_that_differ():
    model = small()
    state = model.state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    models.load_state(model, state)
    state["classifier.weight"] = torch.zeros(10, 3)
    state["extra"] = state.pop("features.0.bias")
    with pytest.raises(InputError) as error:
        models.load_state(model, state, "net.pt")
    for told in (
        "net.pt",
        "features.0.bias is missing",
        "extra is unexpected",
        "classifier.weight is (10, 3), not (10, 32)",
    ):
        assert told in str(error.value)


def test_a_missing_checkpoint_lists_the_shipped_ones():
    with pytest.raises(InputError, match="does not exist; accepted: a path, or a shipped one"):
        models.find_checkpoint("no-such-net")


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"epochs": 1, "batch_size": 0}, {"epochs": 1, "lr": -1}])
def test_a_recipe_refuses_nonsense(bad):
    with pytest.raises(InputError, match="is not positive"):
        Recipe(**bad)


@pytest.mark.parametrize("warmup", [-0.1, 2.0, float("nan")])
def test_a_warmup_beyond_the_training_is_refused(warmup):
    with pytest.raises(InputError, match="warmup .* is not within"):
        Recipe(epochs=1, warmup=warmup)


def test_a_loss_that_explodes_is_one_line():
    generator = torch.Generator().manual_seed(0)
    recipe = Recipe(epochs=3, batch_size=50, lr=1e30)
    with pytest.raises(InputError, match="smaller lr"):
        models.train(small(), loader_of(tiny_dataset(), generator), recipe, generator=generator, progress=False)


@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_loss_that_is_no_number_stops_training_and_names_the_step(step, monkeypatch):
    """Four steps an epoch: the sixth is the second of epoch 2."""
    generator, steps = torch.Generator().manual_seed(0), []
    loss_of = training.F.cross_entropy

    def spoilt(*arguments):
        steps.append(1)
        return loss_of(*arguments) * (float("nan") if len(steps) == step else 1)

    monkeypatch.setattr(training.F, "cross_entropy", spoilt)
    with pytest.raises(InputError, match=rf"loss is nan at step {step} \(epoch {1 + (step - 1) // 4}\)"):
        models.train(small(), loader_of(tiny_dataset(), generator), RECIPE, generator=generator, progress=False)
    assert len(steps) <= 4 * (1 + (step - 1) // 4)


def test_the_loss_is_looked_at_within_a_long_epoch(monkeypatch):
    monkeypatch.setattr(training, "LOOK_EVERY", 2)
    generator, recipe = torch.Generator().manual_seed(0), Recipe(epochs=1, batch_size=50, lr=1e30, warmup=0.0)
    with pytest.raises(InputError, match=r"at step 2 "):
        models.train(small(), loader_of(tiny_dataset(), generator), recipe, generator=generator, progress=False)
    assert generator.initial_seed() == 0


def test_weights_that_half_precision_cannot_hold_are_not_saved(tmp_path, monkeypatch):
    """float16 ends at 65,504, which a running variance may pass."""

    def train(model, *_, **__):
        model.state_dict()["features.1.running_var"].fill_(1e5)
        return [1.0]

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    spec = Spec("vgg11", 1, RECIPE, width=0.0625, norm="batch")
    with pytest.raises(InputError, match=r"NaN or Inf in features\.1\.running_var"):
        models.trained(spec, tiny_dataset(), path=tmp_path / "net.safetensors", half=True, progress=False)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_output_that_is_no_number_counts_as_wrong():
    class Diverged(torch.nn.Module):
        def forward(self, x):
            return torch.full((len(x), 10), float("nan"))

    accuracy, loss = models.evaluate(Diverged(), [(torch.zeros(4, 1), torch.tensor([0, 0, 1, 2]))])
    assert accuracy == 0
    assert loss != loss


def test_nothing_is_measured_in_training_mode():
    """Whatever mode networks come in: dropout off, and no statistic of a BatchNorm moves."""
    from lib import fusion, matching, symmetry

    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    a, b = small(0), small(1)
    groups = symmetry.trace(a, models.example("vgg11"))
    batches = [(images, labels)]

    def everything():
        maps = matching.match([a, b], groups, "activation", images=batches, progress=False)
        points = [fusion.measure(small(), net.state_dict(), batches) for net in (a, b)]
        aligned = fusion.align([a, b], groups, maps)
        fused = fusion.correct(aligned, 0.5, "repair", images=batches, progress=False)
        return maps[1], points, models.evaluate(a, batches), fusion.ensemble([a, b], batches), fused.state

    before = [models.state_of(net) for net in (a, b)]
    expected = everything()
    a.train()
    b.train()
    found = everything()
    assert found[1:4] == expected[1:4]
    for one, other in ((found[0], expected[0]), (found[4], expected[4])):
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    for net, state in zip((a, b), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("value", [0.0, 1.0, 1000.37])
def test_a_unit_that_always_says_the_same_makes_no_nan(value):
    """A dead unit, and a BatchNorm of zero variance, through every matcher and correction on both networks."""
    from lib import fusion, matching, symmetry

    a, b = models.build("mlp", width=0.02, norm="batch", seed=0), models.build("mlp", width=0.02, norm="batch", seed=1)
    groups = symmetry.trace(a, models.example("mlp"))
    images = [torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))]
    for net in (a, b):
        state = net.state_dict()
        first, norm = groups.layers[0], groups.layers[0].norm
        state[first.weight][0] = 0
        state[f"{norm}.running_mean"][0] = state[first.bias][0] if first.bias else 0
        state[f"{norm}.running_var"][0] = 0
        state[f"{norm}.bias"][0] = value
        net.load_state_dict(state)
    for name in matching.MATCHERS:
        with contextlib.suppress(InputError):  # the spectral ones take no BatchNorm
            maps = matching.match([a, b], groups, name, images=images, progress=False)
            perms = maps[1]
        for matrix in (perms.similarity or {}).values():
            assert torch.isfinite(matrix).all(), name
        if name == "activation":
            similarity = next(iter(perms.similarity.values()))
            assert similarity.abs().max() <= 1.001
            # a unit that never varies correlates with nothing
            assert similarity[0].abs().max() < 0.05 and similarity[:, 0].abs().max() < 0.05
        aligned = fusion.align([a, b], groups, maps)
    for name in fusion.CORRECTIONS:
        fused = fusion.correct(aligned, 0.5, name, images=images, progress=False)
        for tensor in fused.state.values():
            assert torch.isfinite(tensor.double()).all(), name


def test_alphas_in_any_order_give_one_curve():
    from lib import fusion, symmetry

    a, b = small(0), small(1)
    groups = symmetry.trace(a, models.example("vgg11"))
    batches = [(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(8))]
    parents = {side: fusion.measure(small(), net.state_dict(), batches) for side, net in (("a", a), ("b", b))}
    aligned = fusion.align([a, b], groups, [groups.identity()] * 2)
    given = {"parents": parents, "test": batches, "progress": False}
    curves = [fusion.curve(aligned, alphas, **given) for alphas in ((0, 0.5, 1), (1, 0, 0.5))]
    assert [point["alpha"] for point in curves[0].points] == [0, 0.5, 1]
    assert curves[0].points == curves[1].points
    assert curves[0].barrier == curves[1].barrier


def test_held_out_images_are_never_trained_on(monkeypatch, tmp_path):
    """The last `held_out` images are in no batch of the training, and a spec without them reads as it always did."""
    images = torch.zeros(40, 1, 28, 28, dtype=torch.uint8)
    numbered = loaders.Split(images, torch.arange(40))
    numbered = loaders.Dataset(
        "numbered", numbered, loaders.Split(images, torch.zeros(40, dtype=torch.int64)), "0" * 64
    )
    seen = []
    monkeypatch.setattr(training, "train", lambda model, batches, *_, **__: [seen.append(list(batches)), 0.0][1:])
    spec = Spec("mlp", 0, Recipe(epochs=1, batch_size=10, augment=False), width=0.02, held_out=10)
    path = models.trained(spec, numbered, path=tmp_path / "net.safetensors", progress=False).path
    labels = torch.cat([labels for _, labels in seen[0]])
    assert sorted(labels.tolist()) == list(range(30))
    assert models.read_sidecar(path)["spec"]["held_out"] == 10
    assert "held_out" not in dataclasses.replace(spec, held_out=0).as_dict()
    with pytest.raises(InputError, match="held_out 40 of 40 training images leaves none"):
        models.trained(dataclasses.replace(spec, held_out=40), numbered, path=tmp_path / "other.safetensors")


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dirichlet_parts_divide_the_images_and_skew_the_classes(beta):
    labels = torch.arange(10).repeat_interleave(100)
    first, second = models.dirichlet_parts(labels, beta, seed=1)
    assert torch.equal(torch.cat([first, second]).sort().values, torch.arange(1000))  # every image once
    assert min(len(first), len(second)) >= 200
    share = torch.bincount(labels[first], minlength=10) / 100
    assert (share - share.mean()).abs().max() > 0.2  # no even division
    again, _ = models.dirichlet_parts(labels, beta, seed=1)
    assert torch.equal(first, again)
    assert not torch.equal(first, models.dirichlet_parts(labels, beta, seed=2)[0])


def test_a_smaller_beta_skews_more():
    labels = torch.arange(10).repeat_interleave(100)

    def skew(beta):
        parts = [models.dirichlet_parts(labels, beta, seed)[0] for seed in range(20)]
        return sum((torch.bincount(labels[part], minlength=10) / 100 - 0.5).abs().mean() for part in parts)

    assert skew(0.1) > skew(0.5) > skew(10.0)


def test_dirichlet_parts_refuse_a_beta_that_is_none():
    with pytest.raises(InputError, match="beta 0 is not accepted"):
        models.dirichlet_parts(torch.arange(10), 0, seed=0)
    with pytest.raises(InputError, match="accepted: one of them"):
        models.Spec("mlp", 0, models.Recipe(epochs=1), classes=(0, 1), part=models.Part(0.1, 0, 0))


def test_no_dirichlet_part_is_left_with_less_than_a_fifth():
    labels = torch.arange(2).repeat_interleave(50)  # of two classes alone, one part often gets both
    for seed in range(20):
        parts = models.dirichlet_parts(labels, 0.1, seed)
        assert min(map(len, parts)) >= 20
