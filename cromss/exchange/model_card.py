"""The model card of an encoder: every number is the runs', and what nobody wrote down is said to be unknown."""

import warnings
from typing import TYPE_CHECKING, Any

from cromss import provenance
from cromss.exchange import feeding
from cromss.exchange.markdown import plain, table
from cromss.exchange.story import SCORES, Judged, Story
from cromss.networks.encoders import EncoderCard
from cromss.sensors import sensor

if TYPE_CHECKING:
    from cromss.exchange.formats import Outgoing

_DIGEST = 12  # hexadecimal digits of a store's digest that a sentence bears

_TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

An encoder of {{ product }} images ({{ bands | length }} bands) for semantic segmentation and other dense tasks:
{{ architecture }}, {{ depth }} stages, no classifier. Method: {{ method }}.

## What to feed it

`pixels`: {{ product }}, in {{ unit }}, the bands in this order. Another order, unit, processing level or offset is another
input, and nothing in the network notices.

{{ feeding_table }}

Input scaling `{{ scaling }}`{{ scaling_note }}:

```python
import torch

{{ feeding_code }}
```
{% if adapted %}
**Its first convolution was changed after training**: trained on {{ trained_on }}; {{ adapted }}. No number below was measured
with the changed bands.
{% endif %}
## How to load it

```python
{{ loading }}
```

## Training

{{ training_table }}
{% if hyper %}
{{ hyper_table }}
{% endif %}
## What it scored

{{ validation }}

### Downstream

{{ downstream }}

### Were the wrong labels found?

{{ noise }}

## Limits

{{ limits }}

## Licence

{{ licence_sentence }}

## Where the numbers come from

{{ origin }}
"""


def written(encoder: "Outgoing", library: str, loading: str) -> str:
    """The text of README.md, YAML header included. Raises ValueError where the header is none."""
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

    data = _header(encoder, library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = ModelCard.from_template(data, template_str=_TEMPLATE, **_words(encoder, loading))
    read = ModelCard(str(made))  # what a reader finds in it
    if data.eval_results:
        index = eval_results_to_model_index(data.model_name, data.eval_results)
        assert model_index_to_eval_results(index)[1] == data.eval_results
    assert read.data.license == data.license
    return f"{str(made).rstrip()}\n"


def _header(encoder: "Outgoing", library: str) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    card, story = encoder.card, encoder.story
    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name=f"{one.scheme}, encoder {one.mode}",
            dataset_type=one.scheme,
            dataset_name=f"{one.scheme}, store {story.judged_on[:_DIGEST]}",
            dataset_config=f"encoder {one.mode}",  # results of one data set and configuration are one entry
            dataset_split="test",
            dataset_revision=story.judged_on or None,
            metric_type=score,
            metric_name=f"{SCORES[score]} in %, mean of {one.repeats} downstream runs",
            metric_value=round(middle, 2),
        )
        for one in story.judged
        for score, (middle, _) in one.scores.items()
    ]
    sensors = {"s1": "sentinel-1", "s1d": "sentinel-1", "s2": "sentinel-2"}
    return ModelCardData(
        license=encoder.licence,
        library_name=library,
        pipeline_tag="image-feature-extraction",
        tags=["remote-sensing", "earth-observation", sensors.get(card.modality, card.modality), "cromss"],
        **({"model_name": _title(card), "eval_results": results} if results else {}),
    )


def _title(card: EncoderCard) -> str:
    return plain(f"{card.architecture} on {feeding.product(card)}, {card.method or 'method unknown'}")


def _words(encoder: "Outgoing", loading: str) -> dict[str, Any]:
    card, story = encoder.card, encoder.story
    return {
        "title": _title(card),
        "product": plain(feeding.product(card)),
        "unit": plain(feeding.unit(card)),
        "bands": card.bands,
        "architecture": card.architecture,
        "depth": card.depth,
        "method": _method(card, story),
        "scaling": card.scaling.kind,
        "scaling_note": _rescaled(card),
        "feeding_table": _bands(card),
        "feeding_code": feeding.code(card),
        "adapted": plain(card.extra.get("bands_adapted", "")),
        "trained_on": plain(card.extra.get("bands_trained_on", "")),
        "loading": loading,
        "training_table": table(("", ""), _training(card, story)),
        "hyper": story.hyperparameters(),
        "hyper_table": table(("setting", "value"), story.hyperparameters().items()),
        "validation": _validation(card, story),
        "downstream": _downstream(story),
        "noise": _noise(card, story),
        "limits": _limits(card, story),
        "licence_sentence": _licence(encoder.licence),
        "origin": _origin(card, story),
    }


def _method(card: EncoderCard, story: Story) -> str:
    paper = " (cross-modal sample selection, arXiv 2405.01217)"
    known = story.hyperparameters().get("objective.method.kind") == "cromss"
    return f"{plain(card.method) or feeding.UNKNOWN}{paper if known else ''}"


def _rescaled(card: EncoderCard) -> str:
    before = card.extra.get("scaling_trained_with")
    return f" (stated when the bands were changed; it was trained with `{plain(before)}`)" if before else ""


def _bands(card: EncoderCard) -> str:
    """A row per band: what the scaling reckons with and, where they were measured, the training data's own statistics."""
    used, contract = feeding.numbers(card), card.contract
    columns = {name: values for name, values in used.items() if name in ("mean", "std")}
    titles = [f"{name} of the scaling" for name in columns]
    if contract and contract.mean:
        columns |= {"data mean": list(contract.mean), "data std": list(contract.std)}
        titles += ["mean of the training data", "std of the training data"]
    rows = [
        (number, band, *(f"{values[number]:.6g}" for values in columns.values()))
        for number, band in enumerate(card.bands)
    ]
    return table(("channel", "band", *titles), rows)


def _training(card: EncoderCard, story: Story) -> list[tuple[str, str]]:
    run, unknown = story.run, feeding.UNKNOWN
    result, settings = run.get("pretraining") or {}, story.hyperparameters()
    counted = f"{story.patches:,} of {story.places:,} places" if story.patches and story.places else unknown
    steps, batch = result.get("steps"), settings.get("optim.batch_size")
    known = {
        "training data": f"patch store `{card.store}`" if card.store else unknown,
        "patches in its training split": counted,
        "patches seen": f"{steps * batch:,} ({steps:,} steps of {batch:,})" if steps and batch else unknown,
        "label scheme (noisy labels)": story.scheme or unknown,
        "epochs": str(card.epoch) if card.epoch is not None else unknown,
        "seed": str(card.seed) if card.seed is not None else unknown,
        "wall clock": f"{_span(run['seconds'])} on {result.get('workers', '?')} worker(s), {result.get('device', '?')}"
        if isinstance(run.get("seconds"), (int, float))
        else unknown,
    }
    if settings and "objective.method.kind" not in settings:
        known["label scheme (noisy labels)"] = "none: no label was read"
    for key, title in (("imported_from", "imported from layout"), ("imported_file", "file"), ("imported_sha256", "sha256"),
                       ("imported_is", "which is")):  # fmt: skip
        if key in card.extra:
            known[title] = card.extra[key]
    return list(known.items())


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.0f} s"


def _validation(card: EncoderCard, story: Story) -> str:
    found = story.validation(card.modality)
    if not found:
        return "Validation and probe metrics: unknown."
    about = (
        "At the end of the pretraining; `val/` on held-out places against the same noisy labels (`clean_miou`: against the "
        "truth, which is known of synthetic data), `probe/` by a linear head on the frozen encoder. Fractions, not percent."
    )
    return f"{about}\n\n" + table(("metric", "value"), [(f"`{key}`", f"{value:.4g}") for key, value in found.items()])


def _downstream(story: Story) -> str:
    if not story.judged:
        return "Unknown: no downstream run of this encoder was at hand."
    about = (
        f"In percent, mean ± standard deviation over downstream runs of this one pretraining (not over pretrainings); test "
        f"set: store `{story.judged_on or feeding.UNKNOWN}`."
    )
    rows = [
        (one.mode, one.scheme, one.head or "-", one.protocol or "-", *(_score(one, score) for score in SCORES), one.repeats,
         f"{one.pixels:,}")
        for one in story.judged
    ]  # fmt: skip
    return f"{about}\n\n" + table(
        ("encoder", "classes", "head", "protocol", *SCORES.values(), "runs", "test pixels"), rows
    )


def _score(one: Judged, score: str) -> str:
    middle, spread = one.scores[score]
    return f"{middle:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def _noise(card: EncoderCard, story: Story) -> str:
    found = story.noise(card.modality)
    if "rate" not in found or not any(key.startswith("auroc") for key in found):
        return "Unknown: the true labels of the training data are not known, or nobody measured it."
    names = {"F": "own label confidence F", "F_enhanced": "enhanced confidence F′", "W": "label weights W"}
    rows = [
        (title, *(f"{found[f'{kind}_{key}']:.3f}" if f"{kind}_{key}" in found else "-" for kind in ("auroc", "auprc")))
        for key, title in names.items()
        if f"auroc_{key}" in found
    ]
    return (
        f"The truth is known here: {found['rate']:.1%} of the labels were wrong, measured on {found.get('pixels', 0):,} "
        f"training pixels. AUROC 0.5 is chance; AUPRC at chance is the share of wrong labels.\n\n"
        + table(("does it find the wrong labels?", "AUROC", "AUPRC"), rows)
    )


def _limits(card: EncoderCard, story: Story) -> str:
    levels = {"s2": "top-of-atmosphere reflectance x 1e4 with the offset of processing baseline 04.00 removed"}
    lines = [
        f"- Made for {feeding.product(card)} in {feeding.unit(card)}"
        + (
            f": {levels[card.modality]}"
            if feeding.product(card) == sensor("s2").title and card.modality == "s2"
            else ""
        )
        + ". Other sensors, levels and units were not tried.",
        "- One pretraining with one seed: another seed gives other scores."
        if story.run
        else "- How it was trained is known only as far as the tables above say.",
    ]
    if isinstance(story.noise(card.modality).get("rate"), float):
        lines.append(
            "- The truth of its training labels is known, as of a synthetic data set: scores say little about real land."
        )
    if not story.judged:
        lines.append("- It was not judged downstream, as far as is known here.")
    lost = (story.run.get("pretraining") or {}).get("quarantined") or []
    if lost:
        patches = sum(one.get("patches", 0) for one in lost)
        lines.append(f"- {patches:,} patches in {len(lost)} damaged shards of the training data were left out.")
    return "\n".join(lines)


def _licence(licence: str) -> str:
    if licence == feeding.UNKNOWN:
        return "Unknown: nobody stated one when this folder was written. Ask whoever gave it to you."
    return f"{plain(licence)}, as stated by whoever wrote this folder."


def _origin(card: EncoderCard, story: Story) -> str:
    run = story.run.get("provenance") or {}
    if not run:
        return "From the encoder's own card; no run stood beside it."
    packages = ", ".join(f"{name} {version}" for name, version in (run.get("packages") or {}).items())
    rows = [
        ("run", f"{story.run.get('arm', '')} seed {story.run.get('seed', '?')}, `{story.run.get('key', '?')}`"),
        ("git revision", provenance.revision(run) or feeding.UNKNOWN),
        ("versions", f"Python {run.get('python', '?')}, {packages}"),
    ]
    return table(("", ""), rows)
