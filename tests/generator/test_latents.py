"""What enters the generator: every column of Table 3 against its formula, and the controls in place of text."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nayer_lib.datasets import DATASETS
from nayer_lib.errors import UserError
from nayer_lib.generator.latents import (
    COLUMNS,
    EMBEDDINGS,
    LATENTS,
    Column,
    LabelLatent,
    Noise,
    build_latent,
    control_table,
)

CLASSES, EMBED, NOISE, BATCH = 3, 8, 5, 7
BETA, CONCAT = 0.5, 4
NOISY = [name for name, column in COLUMNS.items() if column.noise]
QUIET = [name for name, column in COLUMNS.items() if not column.noise]
REDRAWN = [name for name, column in COLUMNS.items() if column.redrawn]
KEPT = [name for name, column in COLUMNS.items() if not column.redrawn]
ONEHOT = [name for name, column in COLUMNS.items() if column.source == "onehot"]


def fresh_table(seed=0, classes=CLASSES, embed=EMBED):
    return torch.randn(classes, embed, generator=seeded(seed))


@pytest.fixture
def table():
    return fresh_table()


def build(name, table, batch=BATCH, **options):
    torch.manual_seed(0)
    return build_latent(name, table, NOISE, batch, **{"beta": BETA, "concat_dim": CONCAT, **options})


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def labels_of(batch):
    return torch.arange(batch) % CLASSES


def train_a_step(latent, labels):
    """One step of gradient descent on something."""
    latent(labels).square().sum().backward()
    with torch.no_grad():
        for parameter in latent.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad


@pytest.mark.parametrize("name", LATENTS)
@pytest.mark.parametrize("batch", [2, 6, 7])
def test_a_latent_maps_labels_to_generator_inputs(table, name, batch):
    latent = build(name, table, batch)
    labels = labels_of(batch)
    assert latent(labels).shape == (batch, NOISE)
    assert latent(labels[:2]).shape == (2, NOISE)  # fewer labels than the batch it was built for


# --- each column against its formula


# Table 3's columns: e is the text's or a one-hot vector; heads by the image's place in the batch; z joins or not.
HEADS = {
    "noisy": [0, 0, 0, 1, 1, 1, 2],
    "noisy_kept": [0, 0, 0, 1, 1, 1, 2],
    "noisy_1to1": [0, 1, 2, 3, 4, 5, 6],
    "noisy_one": [0] * 7,
    "lte": [0] * 7,
    "onehot": [0] * 7,
    "cat_lte": [0] * 7,
    "cat_onehot": [0] * 7,
    "sum_lte": [0] * 7,
    "sum_onehot": [0] * 7,
}


def by_hand(name, latent, table, labels):
    """BN(e), or BN(e) + beta z, or [BN(e); z]; then the head of the image's place."""
    e = torch.eye(CLASSES)[labels] if "onehot" in name else table[labels]
    norm = latent.layer.norm
    rows = (e - e.mean(0)) / (e.var(0, unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias
    if name.startswith("sum"):
        rows = rows + BETA * latent.z[: len(labels)]
    if name.startswith("cat"):
        rows = torch.cat([rows, latent.z[: len(labels)]], 1)
    heads = HEADS[name][: len(labels)]
    out = [row @ latent.layer.weight[h] + latent.layer.bias[h, 0] for row, h in zip(rows, heads, strict=True)]
    return torch.stack(out)


def test_every_column_has_a_formula_here():
    assert set(HEADS) == set(COLUMNS) == set(LATENTS) - {"noise"}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("count", [BATCH, 4])
def test_a_column_is_its_formula(table, name, count):
    latent, labels = build(name, table), torch.tensor([2, 0, 0, 1, 2, 1, 0])[:count]
    with torch.no_grad():  # neither the BatchNorm nor the biases are the identity
        latent.layer.norm.weight.uniform_(0.5, 2)
        latent.layer.norm.bias.normal_()
        latent.layer.bias.normal_()
    assert len(latent.layer.weight) == max(HEADS[name]) + 1
    torch.testing.assert_close(latent(labels), by_hand(name, latent, table, labels))


@pytest.mark.parametrize("name", NOISY)
def test_the_width_of_z_is_that_of_what_it_joins(table, name):
    latent = build(name, table)
    source = CLASSES if name in ONEHOT else EMBED
    cat = name.startswith("cat")
    assert latent.z.shape == (BATCH, CONCAT if cat else source)
    assert latent.layer.weight.shape == (1, source + (CONCAT if cat else 0), NOISE)


@pytest.mark.parametrize("name", ["cat_lte", "sum_lte"])
def test_the_batchnorm_sees_no_noise(table, name):
    """BN(e) has variance 1 whatever z is, so beta is the noise's share of the signal."""
    latent, seen = build(name, table, beta=100.0), []
    latent.layer.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    labels = labels_of(BATCH)
    latent(labels)
    assert torch.equal(seen[0], table[labels])


def test_k_to_1_has_a_head_for_every_k_images(table):
    """H = ceil(B / K): a head makes "a maximum of 100 for CIFAR100 or 10 for CIFAR10" samples (Section 3.3)."""
    for batch, heads in ((2, 1), (3, 1), (6, 2), (7, 3)):
        assert len(build("noisy", table, batch).layer.weight) == heads


def test_one_to_one_is_a_head_for_every_image(table):
    latent = build("noisy_1to1", table, 4)
    out = latent(torch.tensor([0, 1, 0, 1]))
    assert len(latent.layer.weight) == 4
    assert (out[0] - out[2]).abs().max() > 0.1  # the same label twice, two places


@pytest.mark.parametrize("name", ["noisy_one", "lte", "onehot"])
def test_one_head_without_noise_tells_no_two_images_of_a_class_apart(table, name):
    out = build(name, table)(torch.tensor([0, 1, 0, 1]))
    torch.testing.assert_close(out[:2], out[2:])


@pytest.mark.parametrize(("name", "heads"), [("noisy_1to1", 205_200_000), ("noisy", 20_520_000), ("lte", 513_000)])
def test_parameters_at_the_papers_sizes(name, heads):
    """e = 512, r = 1000, 400 images of ten classes: why the paper shares a head among K images."""
    with torch.device("meta"):
        latent = build_latent(name, torch.empty(10, 512), 1000, 400)
    norm = 2 * 512
    assert sum(p.numel() for p in latent.parameters()) == heads + norm
    assert latent.layer.weight.numel() + latent.layer.bias.numel() == heads


@pytest.mark.parametrize("name", ONEHOT)
def test_one_hot_ignores_the_tables_values(table, name):
    labels = labels_of(BATCH)
    assert torch.equal(build(name, table)(labels), build(name, fresh_table(1, embed=100) * 50)(labels))


# --- what a redraw changes, and what it leaves


def redrawn_parts(latent) -> set[str]:
    latent.redraw(seeded(1))
    before = {name: value.clone() for name, value in latent.state_dict().items()}
    latent.redraw(seeded(2))
    return {name for name, value in latent.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_redraw_changes_heads_or_noise_or_neither(table, name):
    expected = {"layer.weight"} if name.startswith("noisy") and name != "noisy_kept" else set()
    expected |= {"z"} if name in NOISY else set()
    assert redrawn_parts(build(name, table)) == expected


def test_which_columns_redraw_their_heads_and_which_have_noise():
    assert REDRAWN == ["noisy", "noisy_1to1", "noisy_one"]
    assert NOISY == ["cat_lte", "cat_onehot", "sum_lte", "sum_onehot"]
    assert ONEHOT == ["onehot", "cat_onehot", "sum_onehot"]


@pytest.mark.parametrize("name", LATENTS)
def test_between_two_redraws_the_same_labels_give_the_same_inputs(table, name):
    latent, labels = build(name, table, 6), labels_of(6)
    latent.redraw(seeded(1))
    first = latent(labels)
    assert torch.equal(latent(labels), first)
    latent.redraw(seeded(2))
    if name in KEPT and name in QUIET:
        assert torch.equal(latent(labels), first)  # nothing is random in this column
    else:
        assert (latent(labels) - first).abs().min() > 0
    latent.redraw(seeded(1))
    assert torch.equal(latent(labels), first)


@pytest.mark.parametrize("name", KEPT)
def test_what_training_learned_in_kept_heads_stays(table, name):
    latent, labels = build(name, table), labels_of(BATCH)
    fresh = {key: value.detach().clone() for key, value in latent.named_parameters()}
    train_a_step(latent, labels)
    trained = {key: value.detach().clone() for key, value in latent.named_parameters()}
    assert not torch.equal(trained["layer.weight"], fresh["layer.weight"])
    latent.redraw(seeded(1))
    assert all(torch.equal(value, trained[key]) for key, value in latent.named_parameters())


@pytest.mark.parametrize("name", REDRAWN)
def test_what_training_learned_in_redrawn_heads_is_thrown_away(table, name):
    latent, labels = build(name, table, 6), labels_of(6)
    latent.redraw(seeded(1))
    before = latent(labels).detach()
    latent.layer.norm.requires_grad_(False)
    train_a_step(latent, labels)
    assert not torch.allclose(latent(labels), before)
    latent.redraw(seeded(1))
    assert torch.equal(latent(labels), before)


def test_one_kept_head_is_one_redrawn_head_between_two_redraws(table):
    kept, redrawn = build("lte", table), build("noisy_one", table)
    redrawn.redraw(seeded(5))
    kept.load_state_dict(redrawn.state_dict())
    labels = labels_of(BATCH)
    assert torch.equal(kept(labels), redrawn(labels))
    redrawn.redraw(seeded(6))
    assert not torch.allclose(kept(labels), redrawn(labels))


@pytest.mark.parametrize("name", [*COLUMNS])
def test_the_embeddings_are_constant(table, name):
    """The table is neither parameter nor state; training and redraws leave it alone."""
    latent, labels, before = build(name, table, 6), labels_of(6), table.clone()
    train_a_step(latent, labels)
    latent.redraw()
    assert torch.equal(latent.table, torch.eye(CLASSES) if name in ONEHOT else before)
    assert torch.equal(table, before) and not latent.table.requires_grad
    assert not any("table" in key for key, _ in latent.named_parameters())
    assert not any("table" in key for key in latent.state_dict())


@pytest.mark.parametrize("redraw_norm", [False, True])
def test_redraw_norm_decides_whether_the_batchnorm_starts_over(table, redraw_norm):
    latent = build("noisy", table, 6, redraw_norm=redraw_norm)
    nn.init.constant_(latent.layer.norm.weight, 3)
    latent.redraw()
    assert latent.layer.norm.weight.unique().tolist() == [1.0 if redraw_norm else 3.0]


@pytest.mark.parametrize("name", KEPT)
def test_where_nothing_is_redrawn_the_batchnorm_stays_too(table, name):
    latent = build(name, table, 6, redraw_norm=True)
    nn.init.constant_(latent.layer.norm.weight, 3)
    latent.redraw()
    assert latent.layer.norm.weight.unique().tolist() == [3.0]


# --- noise: alone (Fig. 2a) and beside the label


@pytest.mark.parametrize("name", ["noise", "sum_lte", "cat_lte"])
def test_noise_is_standard_normal_and_new_with_each_redraw(name):
    latent = build_latent(name, fresh_table(embed=200), 200, 100, concat_dim=200)
    latent.redraw(seeded(0))
    z = latent.z.clone()
    assert z.shape == (100, 200)
    assert abs(z.mean().item()) < 4 / 20000**0.5 and z.std().item() == pytest.approx(1, abs=0.02)
    assert torch.pdist(z).min() > 8  # one vector an image; sqrt(2 * 200) = 20 apart
    latent.redraw(seeded(1))
    assert abs((latent.z * z).mean().item()) < 4 / 20000**0.5


def test_noise_alone_is_z_itself():
    latent = Noise(100, 200)
    latent.redraw(seeded(0))
    assert torch.equal(latent(torch.zeros(200, dtype=torch.long)), latent.z)


def test_the_labels_do_not_enter_noise(table):
    latent = build("noise", table, 6)
    assert torch.equal(latent(torch.zeros(6, dtype=torch.long)), latent(labels_of(6)))


@pytest.mark.parametrize("name", ["noise", *NOISY])
def test_noise_is_not_optimised_but_kept_in_the_state(table, name):
    latent, other, labels = build(name, table, 6), build(name, table, 6), labels_of(6)
    latent.redraw(seeded(3))
    assert "z" not in dict(latent.named_parameters()) and not torch.equal(other(labels), latent(labels))
    other.load_state_dict(latent.state_dict())
    assert torch.equal(other(labels), latent(labels))


@pytest.mark.parametrize("name", ["noise", *NOISY])
def test_a_redraw_leaves_what_was_made_before_alone(table, name):
    """The gradient of a graph that still stands may be taken after the next redraw."""
    latent, labels = build(name, table, 6), labels_of(6)
    out = latent(labels)
    before = out.detach().clone()
    latent.redraw(seeded(9))
    assert torch.equal(out, before)
    if out.requires_grad:
        out.sum().backward()


@pytest.mark.parametrize("name", ["sum_lte", "cat_lte"])
def test_noise_tells_images_of_a_class_apart(table, name):
    out = build(name, table)(torch.tensor([0, 1, 0, 1]))
    assert (out[0] - out[2]).abs().max() > 0.1


@settings(max_examples=25, deadline=None, database=None)
@given(st.floats(1e-3, 1e3))
def test_beta_scales_the_noise_and_nothing_else(beta):
    one, scaled, quiet = (
        build(name, fresh_table(), beta=b) for name, b in (("sum_lte", 1.0), ("sum_lte", beta), ("lte", 1.0))
    )
    labels = labels_of(BATCH)
    for latent in (one, scaled, quiet):
        latent.layer.weight.data.copy_(one.layer.weight.data)
    scaled.z.copy_(one.z)
    with torch.no_grad():
        noise = one(labels) - quiet(labels)
        torch.testing.assert_close(scaled(labels) - quiet(labels), beta * noise, rtol=1e-3, atol=1e-4 * max(beta, 1))


# --- noise that is optimised (FM, CMI)


def test_learned_noise_is_standard_normal_and_new_with_each_redraw():
    latent = Noise(200, 100, learned=True)
    seen = []
    for seed in (0, 1, 0):
        latent.redraw(seeded(seed))
        seen.append(latent.z.detach().clone())
    assert torch.equal(seen[0], seen[2]) and abs((seen[0] * seen[1]).mean().item()) < 4 / 20000**0.5
    assert abs(seen[0].mean().item()) < 4 / 20000**0.5 and seen[0].std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("count", [6, 4])
def test_learned_noise_gives_and_learns_the_rows_of_its_images(count):
    latent = Noise(5, 6, learned=True)
    out = latent(torch.zeros(count, dtype=torch.long))
    assert torch.equal(out, latent.z[:count])
    (3 * out).sum().backward()
    assert latent.z.grad.mean(1).tolist() == [3.0 if row < count else 0.0 for row in range(6)]


def test_a_redraw_leaves_learned_noise_in_place_and_trainable():
    """An optimiser made before the redraw still moves it, and so does a compiled step."""
    latent = Noise(5, 6, learned=True)
    z, address = latent.z, latent.z.data_ptr()
    latent.redraw()
    assert latent.z is z and z.data_ptr() == address and z.requires_grad and z.is_leaf
    assert [name for name, _ in latent.named_parameters()] == list(latent.state_dict()) == ["z"]


# --- what is refused


def test_an_unknown_latent_names_the_nearest(table):
    with pytest.raises(UserError, match="unknown latent 'noisey'. Did you mean 'noisy'"):
        build_latent("noisey", table, NOISE, 6)


@pytest.mark.parametrize("name", LATENTS)
@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_without_a_second_image_is_refused(table, name, batch):
    with pytest.raises(UserError, match="at least 2 images: BatchNorm has nothing to compare"):
        build_latent(name, table, NOISE, batch)


def test_a_column_of_ones_own_needs_no_name(table):
    """Columns are data: another combination is another `Column`."""
    latent = LabelLatent(Column(heads="classes", redrawn=True, noise="cat"), table, NOISE, BATCH, concat_dim=CONCAT)
    assert latent.layer.weight.shape == (3, EMBED + CONCAT, NOISE)
    assert redrawn_parts(latent) == {"layer.weight", "z"}


# --- controls in place of text


COLORS = DATASETS["color_digits"]


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_control_is_the_same_for_the_same_seed_and_leaves_the_table_alone(name):
    table = fresh_table(classes=50, embed=64)
    before = table.clone()
    first = control_table(name, table, COLORS.factors, 3)
    assert len(first) == 50 and first.dtype == torch.float32 and not first.requires_grad
    assert torch.equal(control_table(name, table, COLORS.factors, 3), first) and torch.equal(table, before)
    other = control_table(name, table, COLORS.factors, 4)
    assert torch.equal(other, first) == (name in ("text", "one_hot", "two_hot"))


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_control_does_not_touch_torch_global_randomness(name):
    before = torch.get_rng_state()
    control_table(name, fresh_table(classes=50, embed=64), COLORS.factors, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_text_is_the_pool_itself(table):
    assert torch.equal(control_table("text", table, None, 0), table)


@pytest.mark.parametrize(("classes", "embed"), [(3, 8), (8, 8), (50, 384)])
def test_orthogonal_vectors_have_the_pools_norms_and_no_structure(classes, embed):
    table = fresh_table(classes=classes, embed=embed) * torch.arange(1, classes + 1)[:, None]
    made = control_table("orthogonal", table, None, 0)
    assert made.shape == table.shape
    torch.testing.assert_close(made.norm(dim=1), table.norm(dim=1), rtol=1e-4, atol=0)
    directions = made / made.norm(dim=1, keepdim=True)
    torch.testing.assert_close(directions @ directions.T, torch.eye(classes), rtol=0, atol=1e-5)


def test_more_classes_than_dimensions_cannot_be_orthogonal():
    with pytest.raises(UserError, match="9 vectors of 8 numbers cannot be orthogonal"):
        control_table("orthogonal", fresh_table(classes=9), None, 0)


@pytest.mark.parametrize("classes", [2, 3, 10, 50])
def test_permuted_gives_every_class_the_vector_of_another(classes):
    table, moves = fresh_table(classes=classes), set()
    for seed in range(8):
        made = control_table("permuted", table, None, seed)
        from_class = [(table == row).all(1).nonzero().item() for row in made]
        assert sorted(from_class) == list(range(classes))  # every vector once
        assert all(a != b for a, b in enumerate(from_class))  # and nobody its own
        moves.add(tuple(from_class))
    assert len(moves) == 1 if classes == 2 else len(moves) > 1


def test_one_hot_is_an_axis_for_each_class():
    assert torch.equal(control_table("one_hot", fresh_table(classes=7), None, 0), torch.eye(7))


def test_two_hot_is_a_one_for_the_ink_and_a_one_for_the_digit():
    table = fresh_table(classes=50)
    made = control_table("two_hot", table, COLORS.factors, 0)
    assert made.shape == (50, 5 + 10) and made.unique().tolist() == [0, 1]
    assert (made.sum(1) == 2).all() and len(made.unique(dim=0)) == 50
    assert COLORS.class_names[13] == "green three"
    assert made[13].nonzero().flatten().tolist() == [1, 5 + 3]
    inks = list(dict.fromkeys(name.split()[0] for name in COLORS.class_names))
    digits = list(dict.fromkeys(name.split()[1] for name in COLORS.class_names))
    for name, row in zip(COLORS.class_names, made, strict=True):
        ink, digit = row.nonzero().flatten().tolist()
        assert name == f"{inks[ink]} {digits[digit - 5]}"


def test_two_hot_of_cifar100_is_a_one_for_the_superclass_and_a_one_for_the_class():
    facts = DATASETS["cifar100"]
    made = control_table("two_hot", fresh_table(classes=100), facts.factors, 0)
    assert made.shape == (100, 20 + 100) and made.unique().tolist() == [0, 1] and (made.sum(1) == 2).all()
    assert made[:, :20].sum(0).tolist() == [5] * 20  # five classes a superclass
    assert torch.equal(made[:, 20:], torch.eye(100))
    by_name = dict(zip(facts.class_names, made[:, :20], strict=True))
    assert torch.equal(by_name["apple"], by_name["pear"]) and torch.equal(by_name["baby"], by_name["woman"])
    assert not torch.equal(by_name["apple"], by_name["baby"])


def test_two_hot_needs_classes_with_factors(table):
    assert [name for name, facts in DATASETS.items() if facts.factors is not None] == ["color_digits", "cifar100"]
    with pytest.raises(UserError, match="no factors for a two-hot code: use color_digits"):
        control_table("two_hot", table, DATASETS["digits"].factors, 0)


def test_an_unknown_control_names_the_nearest(table):
    with pytest.raises(UserError, match="unknown embedding 'permute'. Did you mean 'permuted'"):
        control_table("permute", table, None, 0)
