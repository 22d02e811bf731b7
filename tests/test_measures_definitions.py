"""Each definition against sums over full attention rows, key by key."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_traces import (
    PROMPT,
    Attention,
    FakeRegion,
    FakeTrace,
    attentions,
    dataset_of_attention,
    make_dataset,
    planted_dataset,
    random_attention,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attnlens.errors import InputError
from attnlens.measures import definitions, shares, visual_share
from attnlens.segments import SEGMENTS

NAMES = ("mass", "look-back", "mean-weight", "lookback-ratio", "reflection-v", "no-sink")
FROM_IMAGE_ON = ("visual", "vision_end", "query", "response", "copied")
CONTEXT = ("sink", "system", "visual", "vision_end", "query")
LIGHT = settings(max_examples=40, deadline=None)


def per_head(name: str, attention: Attention, visual=("visual",)) -> np.ndarray:
    """Compute a definition that has a value per head, straight from the attention rows."""
    steps, layers, heads, _ = attention.weights.shape
    result = np.full((steps, layers, heads), np.nan)
    for index in np.ndindex(result.shape):
        image = attention.at(*index, *visual)
        if name == "mass":
            result[index] = image.sum()
        elif name == "mean-weight":
            result[index] = image.mean() if len(image) else np.nan
        elif name == "no-sink":
            rest = 1 - attention.at(*index, "sink").sum()
            result[index] = image.sum() / rest if rest > 1e-9 else np.nan
        elif name == "lookback-ratio":
            generated = attention.at(*index, "response")
            if len(generated):
                context = attention.at(*index, *dict.fromkeys((*CONTEXT, *visual))).mean()
                result[index] = context / (context + generated.mean())
    return result


def per_layer(name: str, attention: Attention, part=("visual",)) -> np.ndarray:
    """Compute a definition that reduces heads itself, straight from the attention rows."""
    result = np.zeros(attention.weights.shape[:2])
    for step, layer in np.ndindex(result.shape):
        rows = attention.weights[step, layer]
        if name == "look-back":
            row = rows.mean(0)
            first = np.flatnonzero(attention.labels == "visual")[0]
            numerator = row[np.isin(attention.labels, part)].sum()
            result[step, layer] = numerator / row[first:].sum()
        else:
            weights = rows.sum(0)[attention.labels == "visual"]
            result[step, layer] = weights.sum() / max((weights > 0).sum(), 1)
    return result[1:] if name == "look-back" else result


@pytest.mark.parametrize("insert_at", [None, 3])
@pytest.mark.parametrize("name", ["mass", "mean-weight", "lookback-ratio", "no-sink"])
def test_per_head_definitions_against_attention_rows(name, insert_at):
    attention = random_attention(1, insert_at=insert_at)
    expected = per_head(name, attention)
    data = dataset_of_attention(attention)
    found = visual_share(data, name, reduction="none")
    assert found.dims == ("step", "layer", "head")
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    layer = visual_share(data, name, reduction="layer")
    assert layer.dims == ("step", "layer")
    np.testing.assert_allclose(layer, expected.mean(2), rtol=2e-6)
    mean = visual_share(data, name)
    assert mean.dims == ("step",)
    np.testing.assert_allclose(mean, expected.mean((1, 2)), rtol=2e-6)


@pytest.mark.parametrize("insert_at", [None, 3])
@pytest.mark.parametrize("zeroed", [0.0, 0.6])
@pytest.mark.parametrize("name", ["look-back", "reflection-v"])
def test_per_layer_definitions_against_attention_rows(name, zeroed, insert_at):
    attention = random_attention(2, insert_at=insert_at, zeroed=zeroed)
    expected = per_layer(name, attention)
    data = dataset_of_attention(attention)
    found = visual_share(data, name, reduction="layer")
    assert found.dims == ("step", "layer")
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    np.testing.assert_allclose(visual_share(data, name), expected.mean(1), rtol=2e-6)


def test_look_back_averages_heads_before_it_divides():
    # Head 0 keeps 0.9 on the sink, head 1 nothing: a mean of ratios would be (1 + 0.5) / 2.
    mass = np.zeros((2, 1, 2, 7))
    mass[:, 0, 0, [0, 2]] = 0.9, 0.1
    mass[:, 0, 1, [2, 4]] = 0.5, 0.5
    share = visual_share(make_dataset(mass), "look-back")
    np.testing.assert_allclose(share, [0.3 / 0.55], rtol=1e-6)


def test_look_back_averages_layers_after_it_divides():
    mass = np.zeros((2, 2, 1, 7))
    mass[:, 0, 0, [0, 2]] = 0.9, 0.1
    mass[:, 1, 0, [2, 4]] = 0.5, 0.5
    np.testing.assert_allclose(visual_share(make_dataset(mass), "look-back"), [0.75], rtol=1e-6)


def test_mean_weight_and_reflection_v_depend_on_key_counts_as_stated():
    keys = np.tile(np.array([1, 3, 8, 1, 4, 2, 0]), (2, 1))
    mass = np.zeros((2, 1, 4, 7))
    mass[..., 2], mass[..., 0] = 0.4, 0.6
    data = make_dataset(mass, keys=keys, visual_nonzero=np.array([[8], [2]]))
    np.testing.assert_allclose(visual_share(data, "mean-weight"), 0.4 / 8, rtol=1e-6)
    np.testing.assert_allclose(visual_share(data, "reflection-v"), [1.6 / 8, 1.6 / 2], rtol=1e-6)


def test_reflection_v_is_zero_where_no_visual_key_has_weight():
    mass = np.zeros((1, 2, 2, 7))
    mass[..., 0] = 1.0
    data = make_dataset(mass, visual_nonzero=np.array([[0, 0]]))
    np.testing.assert_array_equal(visual_share(data, "reflection-v"), [0.0])


def test_uniform_attention_has_closed_forms():
    steps, visual, prompt = 5, PROMPT["visual"], sum(PROMPT.values())
    data = dataset_of_attention(random_attention(steps=steps, heads=3, spread=0.0))
    t = np.arange(steps)
    context = prompt + t
    expected = {
        "mass": visual / context,
        "look-back": (visual / (context - 4))[1:],
        "mean-weight": 1 / context,
        "lookback-ratio": np.where(t > 0, 0.5, np.nan),
        "reflection-v": 3 / context,
        "no-sink": visual / (context - 1),
    }
    assert set(expected) == set(NAMES)
    for name, values in expected.items():
        np.testing.assert_allclose(visual_share(data, name), values, rtol=1e-6, err_msg=name)


def test_copied_tokens_count_only_when_asked():
    attention = random_attention(3, insert_at=2)
    data = dataset_of_attention(attention)
    both = ("visual", "copied")
    for name in ("mass", "mean-weight", "lookback-ratio", "no-sink"):
        with_copies = visual_share(data, name, reduction="none", include_copied=True)
        np.testing.assert_allclose(with_copies, per_head(name, attention, both), rtol=2e-6)
        without = visual_share(data, name, reduction="none")
        np.testing.assert_array_equal(without[:2], with_copies[:2])
        assert (without[2:] != with_copies[2:]).all()
        assert (without.attrs["include_copied"], with_copies.attrs["include_copied"]) == (
            "no",
            "yes",
        )
    found = visual_share(data, "look-back", reduction="layer", include_copied=True)
    np.testing.assert_allclose(found, per_layer("look-back", attention, both), rtol=2e-6)
    with pytest.raises(InputError, match=r"reflection-v.*cannot count copied"):
        visual_share(data, "reflection-v", include_copied=True)


def test_a_head_with_all_its_mass_on_the_sink_is_left_out_of_no_sink():
    mass = np.zeros((1, 1, 2, 7))
    mass[0, 0, 0, 0] = 1.0
    mass[0, 0, 1, [0, 2, 4]] = 0.5, 0.1, 0.4
    data = make_dataset(mass)
    np.testing.assert_allclose(visual_share(data, "no-sink", reduction="none")[0, 0], [np.nan, 0.2])
    np.testing.assert_allclose(visual_share(data, "no-sink"), [0.2])


def test_no_sink_stays_exact_where_the_sink_takes_nearly_all():
    mass = np.zeros((1, 1, 1, 7))
    mass[0, 0, 0, [0, 2, 4]] = 1 - 4e-8, 1e-8, 3e-8
    np.testing.assert_allclose(visual_share(make_dataset(mass), "no-sink"), [0.25], rtol=1e-6)


@given(attentions())
@LIGHT
def test_shares_are_fractions(attention):
    data = dataset_of_attention(attention)
    for name in ("mass", "no-sink", "lookback-ratio", "mean-weight"):
        values = visual_share(data, name, reduction="none").values
        values = values[np.isfinite(values)]
        assert ((values >= 0) & (values <= 1 + 1e-6)).all(), name
    look_back = visual_share(data, "look-back", reduction="layer").values
    look_back = look_back[np.isfinite(look_back)]
    assert ((look_back >= 0) & (look_back <= 1 + 1e-6)).all()
    curves = shares(data, "look-back")
    total = curves.sum("curve").values[np.isfinite(curves).all("curve").values]
    assert (total <= 1 + 1e-6).all()


@given(attentions())
@LIGHT
def test_definitions_order_as_their_denominators_do(attention):
    data = dataset_of_attention(attention)
    mass = visual_share(data, "mass", reduction="none")
    no_sink = visual_share(data, "no-sink", reduction="none")
    assert (no_sink.fillna(np.inf) >= mass - 1e-6).all()
    layer_mass = visual_share(data, "mass", reduction="layer")[1:]
    look_back = visual_share(data, "look-back", reduction="layer")
    assert (look_back.fillna(np.inf) >= layer_mass - 1e-6).all()


@given(attentions(), st.integers(0, 2**20))
@LIGHT
def test_no_sink_ignores_how_much_each_head_puts_on_the_sink(attention, seed):
    data = dataset_of_attention(attention)
    rest = 1 - data["mass"].sel(segment="sink").astype("float64")
    assume(float(rest.min()) > 1e-3)
    sink = rest.copy(data=np.random.default_rng(seed).uniform(0, 0.9, rest.shape))
    mass = data["mass"] / rest * (1 - sink)
    mass.loc[{"segment": "sink"}] = sink
    np.testing.assert_allclose(mass.sum("segment"), 1, rtol=1e-3)
    np.testing.assert_allclose(
        visual_share(data.assign(mass=mass), "no-sink", reduction="none"),
        visual_share(data, "no-sink", reduction="none"),
        rtol=1e-5,
        atol=1e-9,
    )


@given(attentions(), st.floats(0.0, 0.9))
@LIGHT
def test_look_back_ignores_mass_that_all_heads_move_to_the_sink_alike(attention, sink):
    data = dataset_of_attention(attention)
    data["mass"] = data["mass"].astype("float64")
    mass = data["mass"] * (1 - sink)
    mass.loc[{"segment": "sink"}] += sink
    np.testing.assert_allclose(
        visual_share(data.assign(mass=mass), "look-back", reduction="layer"),
        visual_share(data, "look-back", reduction="layer"),
        rtol=1e-9,
    )


@given(attentions(), st.randoms(use_true_random=False))
@LIGHT
def test_the_order_of_heads_and_layers_is_irrelevant(attention, random):
    data = dataset_of_attention(attention)
    heads, layers = list(data["head"].values), list(data["layer"].values)
    random.shuffle(heads)
    random.shuffle(layers)
    shuffled = data.sel(head=heads, layer=layers)
    for name in NAMES:
        np.testing.assert_allclose(
            visual_share(shuffled, name), visual_share(data, name), rtol=1e-9, atol=1e-15
        )


@pytest.mark.parametrize("name", NAMES)
def test_attributes_state_the_definition(name):
    share = visual_share(planted_dataset([0.2, 0.3, 0.1]), name)
    assert share.name == name
    assert share.attrs["definition"] == name
    assert share.attrs["step_owner"] in {"query", "predicted"}
    for key in ("formula", "source", "units", "long_name", "reduction"):
        assert share.attrs[key], key
    assert all(isinstance(value, str) for value in share.attrs.values())


def test_definitions_are_listed_in_the_order_of_the_contract():
    listed = definitions()
    assert tuple(listed) == NAMES
    assert all(text and "\n" not in text for text in listed.values())


@pytest.mark.parametrize(("name", "owner"), [("mass", "predicted"), ("look-back", "query")])
def test_steps_carry_the_token_and_region_of_their_owner(name, owner):
    data = planted_dataset([0.2] * 6, regions=[FakeRegion("back", 2, 4)])
    share = visual_share(data, name)
    expected = data[f"{owner}_token"].sel(step=share["step"]).values
    assert share["token"].values.tolist() == expected.tolist()
    inside = share["step"].values[share["region"].values == "back"]
    assert inside.tolist() == ([3, 4] if owner == "query" else [2, 3])
    assert share["token"].sel(step=inside).values.tolist() == ["<back>", "</back>"]


def test_look_back_leaves_out_step_zero_and_reflection_v_gives_it_no_region():
    data = planted_dataset([0.2] * 4, regions=[FakeRegion("think", 0, 4)])
    assert visual_share(data, "look-back")["step"].values.tolist() == [1, 2, 3]
    share = visual_share(data, "reflection-v")
    assert share["step"].values.tolist() == [0, 1, 2, 3]
    assert share["region"].values.tolist() == ["", "think", "think", "think"]


def test_one_step_is_enough_or_leaves_nothing():
    data = planted_dataset([0.2])
    np.testing.assert_allclose(visual_share(data), [0.2], rtol=1e-6)
    assert visual_share(data, "look-back").sizes == {"step": 0}
    assert np.isnan(visual_share(data, "lookback-ratio")).all()


def test_a_trace_and_its_dataset_give_the_same():
    data = planted_dataset([0.2, 0.4])
    assert visual_share(FakeTrace(data)).identical(visual_share(data))


def test_layers_are_chosen_by_their_index_in_the_model():
    attention = random_attention(4, layers=3)
    data = dataset_of_attention(attention, layer_labels=[3, 7, 11])
    expected = per_head("mass", attention)
    np.testing.assert_allclose(visual_share(data, layers=[11, 3]), expected[:, [0, 2]].mean((1, 2)))
    one = visual_share(data, layers=7, reduction="layer")
    assert one["layer"].values.tolist() == [7]
    np.testing.assert_allclose(one[:, 0], expected[:, 1].mean(1), rtol=2e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"definition": "attention"}, r"'attention'; known: mass, look-back"),
        ({"definition": None}, r"None; known: mass"),
        ({"layers": [0, 9]}, r"\[0, 9\].*holds layers \[0, 1\]"),
        ({"layers": []}, r"\[\].*holds layers"),
        ({"reduction": "sum"}, r"'sum'.*'mass'; available: mean, layer, none"),
        (
            {"definition": "look-back", "reduction": "none"},
            r"'none'.*'look-back'.*: mean, layer\.$",
        ),
        ({"definition": "reflection-v", "reduction": "none"}, r"'none'.*'reflection-v'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        visual_share(planted_dataset([0.2, 0.3]), **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_without_visual_keys_is_refused(name):
    prompt = {"sink": 1, "system": 2, "query": 3}
    data = dataset_of_attention(random_attention(prompt=prompt))
    with pytest.raises(InputError, match="no visual keys"):
        visual_share(data, name)


def test_what_is_not_a_trace_is_refused():
    data = planted_dataset([0.2, 0.3])
    with pytest.raises(InputError, match="ndarray is not a trace"):
        visual_share(np.zeros(3))
    with pytest.raises(InputError, match="list is not a trace"):
        visual_share([data])
    data = dataset_of_attention(random_attention(1))
    with pytest.raises(InputError, match="its steps are not in order"):
        visual_share(data.isel(step=[1, 0, 2]), "mass")
    with pytest.raises(InputError, match="needs mass"):
        visual_share(data.drop_vars("mass"))
    with pytest.raises(InputError, match="needs keys"):
        visual_share(data.assign(keys=data["keys"].sum("segment")))
    with pytest.raises(InputError, match="lacks copied"):
        visual_share(data.sel(segment=list(SEGMENTS[:-1])))
    with pytest.raises(InputError, match="labels along its head axis"):
        visual_share(data.drop_vars("head"))
    with pytest.raises(InputError, match="visual_nonzero"):
        visual_share(data.drop_vars("visual_nonzero"), "reflection-v")


@pytest.mark.parametrize("insert_at", [None, 3])
def test_three_curves_of_look_back(insert_at):
    attention = random_attention(5, insert_at=insert_at)
    found = shares(dataset_of_attention(attention))
    assert found.dims == ("step", "curve")
    assert found["curve"].values.tolist() == ["image", "query", "generated"]
    assert found.attrs["definition"] == "look-back"
    for curve, segment in (("image", "visual"), ("query", "query"), ("generated", "response")):
        expected = per_layer("look-back", attention, (segment,)).mean(1)
        np.testing.assert_allclose(found.sel(curve=curve), expected, rtol=2e-6)
    hidden = per_layer("look-back", attention, ("vision_end", "copied")).mean(1)
    np.testing.assert_allclose(found.sum("curve"), 1 - hidden, rtol=2e-6)


def test_copied_tokens_join_the_image_curve_only_when_asked():
    attention = random_attention(6, insert_at=2)
    found = shares(dataset_of_attention(attention), include_copied=True)
    expected = per_layer("look-back", attention, ("visual", "copied")).mean(1)
    np.testing.assert_allclose(found.sel(curve="image"), expected, rtol=2e-6)
    plain = shares(dataset_of_attention(attention))
    assert found.sel(curve="generated").equals(plain.sel(curve="generated"))


@pytest.mark.parametrize("name", ["mass", "no-sink", "mean-weight"])
def test_three_curves_of_other_definitions(name):
    attention = random_attention(7)
    data = dataset_of_attention(attention)
    found = shares(data, name)
    for curve, segment in (("image", "visual"), ("query", "query"), ("generated", "response")):
        expected = per_head(name, attention, (segment,)).mean((1, 2))
        np.testing.assert_allclose(found.sel(curve=curve), expected, rtol=2e-6)
    no_generated_keys = name == "mean-weight"
    assert bool(np.isnan(found.sel(curve="generated")[0])) == no_generated_keys
    assert found.sel(curve="image", drop=True).equals(visual_share(data, name).rename(found.name))


@pytest.mark.parametrize("name", ["lookback-ratio", "reflection-v"])
def test_definitions_without_three_curves_say_so(name):
    with pytest.raises(InputError, match=r"three curves: mass, look-back, mean-weight, no-sink"):
        shares(planted_dataset([0.2, 0.3]), name)
