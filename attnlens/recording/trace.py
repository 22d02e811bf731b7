"""The trace: the record of one generation."""

from __future__ import annotations

import html
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from attnlens.errors import InputError
from attnlens.recording.response import Region, find_regions
from attnlens.segments import SEGMENTS
from attnlens.stores import located
from attnlens.text import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

_NEEDED = {
    "mass": ("step", "layer", "head", "segment"),
    "keys": ("step", "segment"),
    "predicted_token": ("step",),
    "predicted_token_id": ("step",),
}


class Trace:
    """Attention mass by step, layer, head and segment, with tokens and provenance.

    Step t is the forward pass that predicts response token t. Its *query token* is the token fed
    in (for step 0 the last prompt token, for t > 0 response token t - 1); its *predicted token* is
    response token t.

    Parameters
    ----------
    data
        ``mass[step, layer, head, segment]``
            fraction of attention mass on the keys of a segment; adds up to 1 over segments.
        ``keys[step, segment]``
            number of keys in each segment, up to the step's own. All layers and heads see them,
            except those that ``hidden`` counts.
        ``hidden[step, layer, head, segment]`` (by ``Knockout``, your own mask, or a layer's window)
            number of these keys that the head does not see; measures count the others.
        ``visual_nonzero[step, layer]``
            number of visual keys whose weight, summed over heads, is not zero.
        ``visual_map[step, layer, visual]`` (when asked for, and where it is small)
            weight of each visual token, mean over heads, with coordinates ``visual_image``,
            ``visual_tile`` (of images that are encoded in several grids), ``visual_row`` and
            ``visual_column`` (-1 for a token at the end of a row).
        ``visual_map_by_head[step, mapped, visual]`` (when asked for)
            weight of each visual token for single heads, with the same coordinates, and
            ``mapped_layer`` and ``mapped_head``, which say whose it is.
        ``mass_by_image[step, layer, head, image]`` (with several images)
            mass on each image.
        ``prompt_mass[prompt_row, layer, head, segment]`` (when asked for)
            mass of prompt rows; ``prompt_row`` is the slot of the query in the prompt, and the
            segment's keys are those up to that slot.

        Coordinates along ``step``: ``query_token``, ``predicted_token`` (text),
        ``query_token_id``, ``predicted_token_id``, ``region`` (of the predicted token). The
        attributes hold where the trace comes from.

    Raises
    ------
    InputError
        If the dataset lacks a variable or has it in another shape.
    """

    def __init__(self, data: xr.Dataset) -> None:
        for name, dims in _NEEDED.items():
            if name not in data or data[name].dims != dims:
                raise InputError(
                    f"the dataset is no trace: it needs {name}[{', '.join(dims)}], "
                    f"and has {dict(data.sizes)}"
                )
        if "hidden" in data and data["hidden"].dims != _NEEDED["mass"]:
            raise InputError(
                f"the dataset is no trace: hidden[{', '.join(map(str, data['hidden'].dims))}] "
                f"should be hidden[{', '.join(_NEEDED['mass'])}]"
            )
        if tuple(data["segment"].values) != SEGMENTS:
            raise InputError(
                f"the dataset is no trace: its segments are {list(data['segment'].values)}, "
                f"not {list(SEGMENTS)}"
            )
        self.data = data

    @property
    def untouched(self) -> bool:
        """Whether no intervention, and no mask other than the model's own, changed the run."""
        hidden = "hidden" in self.data and not self.attrs.get("windows")
        return not self.attrs.get("interventions") and not hidden

    @property
    def attrs(self) -> dict[str, Any]:
        """Where the trace comes from: model, versions, dtype, prompt, images, settings."""
        return self.data.attrs

    @property
    def tokens(self) -> list[str]:
        """Text of each predicted token."""
        return [str(t) for t in self.data["predicted_token"].values]

    @property
    def text(self) -> str:
        """The response, without special tokens."""
        special = set(self.attrs.get("special_token_ids", ()))
        ids = self.data["predicted_token_id"].values
        return "".join(t for t, i in zip(self.tokens, ids, strict=True) if int(i) not in special)

    @property
    def cut_off(self) -> bool | None:
        """Whether generation stopped at its longest length, before the answer had ended.

        None where that is not known: for generation without an end token or without a longest
        length, and for a replayed response that does not tell.
        """
        if "replayed" in self.attrs:
            return self.attrs["replayed"]["cut_off"]
        settings = self.attrs.get("generation") or {}
        ends, longest = settings.get("eos_token_id"), settings.get("max_new_tokens")
        ids = self.data["predicted_token_id"].values
        if ends is None or longest is None or not len(ids):
            return None
        ended = int(ids[-1]) in (ends if isinstance(ends, list | tuple) else [ends])
        return not ended and len(ids) >= longest

    @property
    def regions(self) -> list[Region]:
        """Spans of steps that ``<think>``, ``<back>``, ``<REFLECTION>``, ... enclose."""
        return find_regions(self.tokens)

    def save(self, path: str | Path, *, replace: bool = False) -> None:
        """Write the trace as a Zarr folder, whole or not at all.

        Parameters
        ----------
        path
            The folder, usually ``<name>.zarr``.
        replace
            Whether to write over a trace that is already there.

        Raises
        ------
        InputError
            If the folder is not empty and ``replace`` is not set or it holds something other than
            a trace; nothing can be written there; or JSON cannot hold an attribute.
        """
        from attnlens.recording.store import TRACE, save_dataset

        save_dataset(TRACE, self.data, located(path), replace=replace)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace that ``save`` wrote.

        Raises
        ------
        InputError
            If there is none, it is damaged or incomplete, is something else, or was written by a
            newer version.
        """
        from attnlens.recording.store import TRACE, load_dataset

        data, version = load_dataset(TRACE, located(path))
        events = data.attrs.get("interventions", ())
        if version < 2 and any("knockout" in str(e.get("intervention")) for e in events):
            data.attrs["hidden_keys_counted"] = False
        try:
            return cls(data)
        except InputError as error:
            raise InputError(f"{str(path)!r} cannot be read: {error}") from error

    def to_html(
        self,
        path: str | Path,
        *,
        twins: Mapping[str, Trace] | None = None,
        images: Any = None,
        dependence: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
        expected: str | None = None,
        truth: Any = None,
        looking: xr.Dataset | None = None,
        replace: bool = False,
        largest: int = 25_000_000,
    ) -> Path:
        """Write the explorer: one file that shows step by step where each word looked.

        It opens in any browser, offline, and asks the network for nothing.

        Parameters
        ----------
        path
            The file, usually ``<name>.html``.
        twins
            Traces of the same prompt by name, such as the run under an intervention. They stand
            beside this one, which is then called ``"untouched"``.
        images
            The image, or a list of the images and videos of the prompt, as ``vlm.prompt`` takes
            them; None for the files that were recorded, if they are unchanged.
        dependence
            What ``attnlens.dependence`` returned, or a mapping of it by name of the run.
        expected
            The true answer; answers are judged by the rule of ``attnlens.answers``.
        truth
            Where the object is that a token names: what ``Sample.truth(tokens)`` of the testbed
            returned, or pairs of the step that predicts the token and a box (left, top, right,
            bottom) in pixels of the first image.
        looking
            What ``attnlens.lenses.looking_heads`` returned: heads can be sorted by it.
        replace
            Whether to write over a file that is already there.
        largest
            Most bytes of the file, about. Masses of single heads and maps of visual tokens are kept
            in 8 bits; where the file would be larger, maps have fewer levels, or only their mean
            over layers is kept. The page states the largest error.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        InputError
            If the file cannot be written, or exists and ``replace`` is not set; a twin answers
            another prompt; what is known does not fit the trace (a dependence of another answer,
            images of another number or size); or the trace has no visual keys.
        """
        # the explorer draws traces, and this is the trace's name for it
        explorer = importlib.import_module("attnlens.explorer")
        explorer.check_page(path, replace=replace)
        shown = explorer.runs_to_show(
            self,
            twins=twins,
            images=images,
            dependence=dependence,
            expected=expected,
            truth=truth,
            looking=looking,
        )
        return explorer.write_page(path, shown, replace=replace, largest=largest)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each step, layer, head and segment, with mass, tokens and region."""
        wanted = ["query_token", "predicted_token", "region", "mass"]
        frame = self.data[["mass"]].to_dataframe().reset_index()
        return frame[["step", "layer", "head", "segment", *wanted]]

    def _summary(self) -> dict[str, str]:
        sizes = self.data.sizes
        regions = ", ".join(
            f"{r.name} {r.start}-{r.stop - 1}{'' if r.closed else ' (not closed)'}"
            for r in self.regions
        )
        visual = self.data["mass"].sel(segment="visual").mean(("layer", "head")).values
        share = "no steps"
        if len(visual):
            share = f"{visual[0]:.3f} at the first step, {visual[-1]:.3f} at the last"
        text = self.text if len(self.text) <= 160 else self.text[:157] + "..."
        return {
            "model": str(self.attrs.get("model", "")),
            "question": f"{self.attrs.get('question', '')} ({self.attrs.get('mode', '')})",
            "recorded": f"{sizes['step']} steps, {sizes['layer']} layers, {sizes['head']} heads",
            "visual mass": share,
            "regions": regions or "none",
            "response": text,
        }

    def __repr__(self) -> str:
        """Show model, sizes, visual mass, regions and the response."""
        # attributes may come from a file: no terminal may obey what they hold
        lines = [
            f"  {name}: {value!r}" if name == "response" else f"  {name}: {one_line(value)}"
            for name, value in self._summary().items()
        ]
        return "<attnlens.Trace>\n" + "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._summary().items()
        )
        return f"<b>attnlens.Trace</b><table>{rows}</table>"
