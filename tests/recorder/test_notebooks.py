"""Histories as tables, figures and cells of a notebook."""

import numpy as np
import pytest

from attnwatch import ConfigurationError, PruningPlan, diagnose
from tests.support.records import a_history, a_record


def test_table_of_layers_has_the_numbers_of_the_history():
    history = a_history()
    table = history.to_pandas()
    assert table.index.names == ["step", "layer"]
    assert len(table) == 16
    row = table.loc[(30, "layers.1.attn")]
    assert row["loss"] == history.loss[3]
    assert row["entropy"] == pytest.approx(history["entropy"][3, 1].mean())
    assert row["max_logit"] == history["max_logit"][3, 1].max()
    assert row["gradient_norm"] == history["gradient_norm"][3, 1]


def test_table_of_heads_has_the_numbers_of_the_history():
    history = a_history()
    table = history.to_pandas(per="head")
    assert table.loc[(30, "layers.1.attn", 2), "entropy"] == history["entropy"][3, 1, 2]
    assert np.isnan(table.loc[(70, "layers.0.attn", 2), "entropy"])
    with pytest.raises(ConfigurationError, match="`per` must be 'layer' or 'head', got 'model'"):
        history.to_pandas(per="model")


@pytest.mark.parametrize("name", ["normalized_entropy", "gradient_norm"])
def test_plot_draws_the_layers_over_the_steps(name):
    (image,) = a_history().plot(name).axes[0].images
    expected = a_history()[name]
    expected = expected if expected.ndim == 2 else np.nanmean(expected, axis=-1)
    np.testing.assert_allclose(image.get_array().T, expected, rtol=1e-6)


def test_plot_of_an_unknown_statistic_is_refused():
    with pytest.raises(KeyError, match="'charm' is not in this history"):
        a_history().plot("charm")


@pytest.mark.parametrize(
    "shown",
    [a_history(), diagnose(a_history()), PruningPlan({"<b>": (1,)}, {"<b>": 4}), a_record().diagnosis],
    ids=type,
)
def test_notebooks_show_what_is_printed(shown):
    words = shown._repr_html_()
    assert words.startswith("<pre")
    assert "<b>" not in words
    assert str(shown).splitlines()[0].split("<")[0][:20] in words
