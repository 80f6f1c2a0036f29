"""The small ViT and the GPT: their names and shapes, what they see, and how they are trained, kept and measured."""

import dataclasses
import json
import math

import pytest
import torch

from lib import fusion, loaders, models
from lib.checks import InputError
from lib.models import Recipe, Spec
from lib.study.run import begin

NAMES = ("vit_mnist", "vit_cifar", "gpt")
ADAMW = Recipe(epochs=3, batch_size=10, lr=3e-3, weight_decay=0.05, warmup=0.1, augment=False, optimiser="adamw")


def text(count=60, length=16, classes=7):
    """Tokens that count upwards from a random one: what follows is known from the token alone."""
    starts = torch.randint(classes, (count, 1), generator=torch.Generator().manual_seed(0))
    tokens = (starts + torch.arange(length + 1)) % classes
    split = loaders.Split(tokens[:, :-1].to(torch.uint8), tokens[:, 1:].contiguous())
    return loaders.Dataset("counting", split, split, "0" * 64)


def tiny(seed=0, **options):
    return models.build("gpt", width=0.125, seed=seed, **{"vocabulary": 7, "length": 16, "depth": 2} | options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"width": 0.3}, {"depth": 1, "heads": 6}])
def test_transformers_return_logits_and_torch_fx_follows_them(name, options):
    net, example = models.build(name, seed=0, **options), models.example(name)
    logits = net(example)
    assert logits.shape == ((2, 64, len(loaders.CHARACTERS)) if name == "gpt" else (2, 10))
    traced = torch.fx.symbolic_trace(net)
    other = example[:1]
    assert torch.equal(traced(example), logits) and torch.equal(traced(other), net(other))


@pytest.mark.parametrize(("patch", "tokens"), [(4, 50), (7, 17), (14, 5)])
def test_a_vit_has_a_class_token_and_one_for_each_patch(patch, tokens):
    state = models.build("vit_mnist", patch=patch).state_dict()
    assert state["patch.weight"].shape == (64, 1, patch, patch)
    assert state["cls"].shape == (1, 1, 64) and state["pos"].shape == (1, tokens, 64)
    block = {name.removeprefix("blocks.0.") for name in state if name.startswith("blocks.0.")}
    layers = {"ln1", "ln2", "mlp.0", "mlp.2", *(f"att.{part}" for part in "qkvo")}
    assert block == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert state["blocks.2.mlp.0.weight"].shape == (128, 64) and "blocks.3.ln1.weight" not in state


def test_a_gpt_has_the_names_of_nanogpt():
    state = models.build("gpt", depth=1).state_dict()
    layers = {"ln_1": (64,), "attn.c_attn": (192, 64), "attn.c_proj": (64, 64), "ln_2": (64,)}
    layers |= {"mlp.c_fc": (256, 64), "mlp.c_proj": (64, 256)}
    shapes = {f"transformer.h.0.{layer}.weight": shape for layer, shape in layers.items()}
    shapes |= {f"transformer.h.0.{layer}.bias": shape[:1] for layer, shape in layers.items()}
    shapes |= {"transformer.wte.weight": (65, 64), "transformer.wpe.weight": (64, 64), "lm_head.weight": (65, 64)}
    shapes |= {"transformer.ln_f.weight": (64,), "transformer.ln_f.bias": (64,)}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes


@pytest.mark.parametrize(
    ("width", "heads", "units"), [(1, 4, 64), (0.5, 4, 32), (0.3, 4, 20), (0.01, 4, 4), (1, 6, 66)]
)
def test_the_stream_is_a_multiple_of_the_heads(width, heads, units):
    net = models.build("vit_mnist", width=width, heads=heads)
    assert net.head.in_features == units
    assert net(models.example("vit_mnist")).shape == (2, 10)


@torch.no_grad()
def test_a_position_sees_those_before_it_alone():
    net, tokens = tiny(depth=3), text().test.images[:1].long()
    for parameter in net.parameters():  # so small a start hardly looks around
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    logits = net(tokens)
    for place in (0, 7, 15):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % 7
        moved = (net(changed) - logits)[0].abs().amax(1) > 1e-4
        assert moved.tolist() == [False] * place + [True] * (16 - place)
    assert torch.allclose(net(tokens[:, :5]), logits[:, :5], atol=1e-4)  # a shorter text


def test_a_tied_head_is_the_table_of_the_tokens(tmp_path):
    net, apart = tiny(tied=True), tiny()
    assert net.lm_head.weight is net.transformer.wte.weight
    assert sum(p.numel() for p in apart.parameters()) - sum(p.numel() for p in net.parameters()) == 7 * 8
    state = models.state_of(net)
    assert state.keys() == models.state_of(apart).keys()
    models.save_checkpoint(tmp_path / "tied.safetensors", state, {})
    other = models.load_state(tiny(1, tied=True), models.read_state(tmp_path / "tied.safetensors"))
    assert other.lm_head.weight is other.transformer.wte.weight
    tokens = text().test.images[:2].long()
    assert torch.equal(other(tokens), net(tokens))
    assert models.state_sha256(net.state_dict()) == models.state_sha256(state)


def test_fresh_layers_are_drawn_as_in_gpt_2():
    net = models.build("gpt", seed=0)
    block = net.transformer.h[0]
    assert block.mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.mlp.c_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.02)
    assert not block.attn.c_attn.bias.any()
    # so it starts from nearly equal probabilities
    assert net(models.example("gpt")).log_softmax(2).mean().item() == pytest.approx(-math.log(65), abs=0.1)


# --- training ---


def test_adamw_is_resumed_to_the_same_weights(tmp_path):
    dataset, resume = text(), tmp_path / "state.resume"

    class Stop(Exception):
        pass

    class Loader(loaders.MemoryLoader):
        left = 99

        def __iter__(self):
            self.left -= 1
            if self.left < 0:
                raise Stop
            return super().__iter__()

    def run(resume=None, epochs=99):
        generator, net = torch.Generator().manual_seed(5), tiny(3)
        batches = Loader(dataset.train, 10, normalise=None, shuffle=True, drop_last=True, generator=generator)
        batches.left = epochs
        losses = models.train(net, batches, ADAMW, generator=generator, resume=resume, progress=False)
        return net.state_dict(), losses

    undisturbed, losses = run()
    assert losses[-1] < losses[0] < math.log(7) + 0.1
    with pytest.raises(Stop):
        run(resume, epochs=2)
    resumed, again = run(resume)
    assert again == losses
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    generator = torch.Generator().manual_seed(5)
    batches = loaders.MemoryLoader(dataset.train, 10, normalise=None, shuffle=True, drop_last=True, generator=generator)
    with pytest.raises(InputError, match="another training"):
        other = dataclasses.replace(ADAMW, optimiser="sgd")
        models.train(tiny(3), batches, other, generator=generator, resume=resume, progress=False)


def test_the_first_step_of_adamw_is_as_long_as_its_rate():
    """Each weight's, whatever its gradient, and weight decay beside it (Loshchilov & Hutter 2019)."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimiser = dataclasses.replace(ADAMW, lr=0.1, momentum=0.8).optimise([weight])
    (weight * torch.tensor([1e-3, 10.0])).sum().backward()
    optimiser.step()
    assert torch.allclose(
        weight, torch.tensor([1.0 - 0.1, -2.0 - 0.1]) - 0.1 * 0.05 * torch.tensor([1.0, -2.0]), atol=1e-4
    )
    assert optimiser.param_groups[0]["betas"] == (0.8, 0.999)


def test_what_is_new_is_left_out_of_a_sidecar_that_does_without():
    plain = Spec("mlp", 0, Recipe(epochs=1)).as_dict()
    assert "optimiser" not in plain["recipe"] and "options" not in plain
    spec = Spec("gpt", 0, ADAMW, options={"depth": 2}).as_dict()
    assert spec["recipe"]["optimiser"] == "adamw" and spec["options"] == {"depth": 2}
    assert json.loads(json.dumps(spec)) == spec


def test_a_gpt_is_trained_kept_and_found_again(tmp_path, capsys):
    dataset, options = text(), {"vocabulary": 7, "length": 16, "depth": 1}
    spec = Spec("gpt", 0, dataclasses.replace(ADAMW, epochs=8), width=0.25, options=options, held_out=10)
    path = models.trained(spec, dataset, path=tmp_path / "net.safetensors", half=True, progress=False).path
    sidecar = models.read_sidecar(path)
    assert sidecar["spec"]["options"] == options
    net = models.load_state(spec.build(), models.read_state(path))
    batches = loaders.MemoryLoader(dataset.test, 25, normalise=models.normalisation("gpt"))
    assert models.evaluate(net, batches) == (sidecar["test_accuracy"], pytest.approx(sidecar["test_loss"]))
    assert sidecar["test_accuracy"] > 0.9
    before = path.stat().st_mtime_ns
    models.trained(spec, dataset, path=path, progress=False)
    assert path.stat().st_mtime_ns == before and "already trained" in capsys.readouterr().out


@pytest.mark.parametrize("skew", [{"classes": (0, 1)}, {"part": models.Part(0.1, 0, 0)}])
def test_a_text_has_no_classes_to_skew(skew, tmp_path):
    with pytest.raises(InputError, match="counting is a text; accepted: neither"):
        models.trained(Spec("gpt", 0, ADAMW, **skew), text(), path=tmp_path / "net.safetensors", progress=False)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: Recipe(epochs=1, optimiser="adam"), "unknown optimiser 'adam'; accepted: sgd, adamw"),
        (lambda: models.build("gpt", patch=2), "gpt has no option patch; accepted: .*depth, heads, tied"),
        (lambda: models.build("vit_mnist", norm="layer"), "vit_mnist has no norm 'layer'; accepted: None"),
        (lambda: models.build("vit_cifar", width=0), "width 0 is not positive"),
        (lambda: models.open_dataset("mnist-5k", "gpt"), r"mnist-5k are \(1, 28, 28\), which cannot .* \(64,\)"),
        (lambda: models.open_dataset("paradise-lost", "vit_mnist"), r"paradise-lost are \(64,\), which cannot"),
    ],
)
def test_bad_input_is_one_line(made, told):
    with pytest.raises(InputError, match=told) as caught:
        made()
    assert "\n" not in str(caught.value)


# --- measuring ---


@torch.no_grad()
def test_every_position_counts_as_an_image():
    net, split = tiny(), text(9).test
    logits, labels = models.outputs(net, loaders.MemoryLoader(split, 4, normalise=None))
    assert logits.shape == (9 * 16, 7) and labels.tolist() == split.labels.flatten().tolist()
    expected = net(split.images.long()).flatten(0, 1)
    assert torch.allclose(logits, expected, atol=1e-6)
    score = models.score(logits, labels)
    assert score.loss == pytest.approx(torch.nn.functional.cross_entropy(expected, labels).item())
    assert score.perplexity == pytest.approx(math.exp(score.loss))
    assert (score.accuracy, score.loss) == models.evaluate(net, [(split.images.long(), split.labels)])


def test_perplexity_of_equal_probabilities_is_their_count():
    score = models.score(torch.zeros(4, 7), torch.arange(4))
    assert score.perplexity == pytest.approx(7)
    assert score._replace(loss=1e4).perplexity == math.inf


@pytest.mark.parametrize("form", ["plain", "column", "one-hot"])
def test_labels_of_positions_come_in_every_form(form):
    net, split = tiny(), text(5).test
    labels = split.labels
    given = {"plain": labels, "column": labels[..., None], "one-hot": torch.nn.functional.one_hot(labels, 7)}[form]
    assert models.evaluate(net, [(split.images.long(), given)]) == models.evaluate(net, [(split.images.long(), labels)])


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda labels: labels[:, :-1], r"labels are int64 \(5, 15\); accepted: whole numbers \(N, 16\)"),
        (lambda labels: labels[:, 0], r"labels are int64 \(5,\); accepted: whole numbers \(N, 16\) or \(N, 16, 1\)"),
        (lambda labels: labels + 1, "a label is 7; accepted: 0 … 6"),
    ],
)
def test_labels_that_are_not_one_a_position_are_refused(spoil, told):
    split = text(5).test
    with pytest.raises(InputError, match=told):
        models.evaluate(tiny(), [(split.images.long(), spoil(split.labels))])


def test_an_ensemble_is_measured_over_positions():
    networks = [tiny(seed) for seed in (0, 1)]
    split = text(9).test
    batches = [(split.images.long(), split.labels)]
    parents, measured, logs = fusion.measure_parents(networks, batches)
    assert logs.shape == (9 * 16, 7)
    logits = [net(split.images.long()).softmax(2) for net in networks]
    mean = (sum(logits) / 2).log().flatten(0, 1)
    assert torch.allclose(logs.float(), mean, atol=1e-5)
    assert measured["test_kl"] == pytest.approx(0, abs=1e-9)
    assert parents["a"]["test_kl"] > 0 and 0 <= parents["a"]["test_agreement"] <= 1
    as_network = models.score(*models.outputs(fusion.Ensemble(networks, (0.5, 0.5)), batches))
    assert as_network.loss == pytest.approx(measured["test_loss"], abs=1e-6)


def test_a_run_builds_what_the_sidecars_tell_of(tmp_path):
    files = {}
    for seed in (0, 1):
        spec = Spec("gpt", seed, ADAMW, width=0.125, options={"depth": 2, "tied": True})
        path = tmp_path / f"net-s{seed}.safetensors"
        models.save_checkpoint(
            path, models.state_of(spec.build()), {"spec": spec.as_dict(), "dataset": "paradise-lost"}
        )
        files[f"checkpoint_{'ab'[seed]}"] = str(path)
    given = {
        "preset": "quick", "dataset": "auto", "matchers": ["none"], "corrections": ["none"], "alphas": [0.5],
        "seed_a": 0, "seed_b": 1, "epochs": None, "width": None, "loader": "memory", "device": "cpu", "limit_train": 0,
        "limit_test": 10, "match_images": 10, "correct_images": 10, "evaluate_train": False, "results_path": "",
        "figures_dir": "", "match_seed": 0, "held_out": 0, "controls": [],
    }  # fmt: skip
    run = begin("own", "gpt", given | files, presets={"quick": {}}, lenient=True, writes=False)
    assert run.architecture == {"name": "gpt", "width": 0.125, "norm": None, "options": {"depth": 2, "tied": True}}
    assert len(run.template.transformer.h) == 2
    networks = run.open_pair()
    assert run.parents(networks)["a"]["test_loss"] == pytest.approx(math.log(65), abs=0.2)
