"""The sections of the report page under its tables of accuracies; empty where the runs have nothing for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from robustjax.analysis import _files
from robustjax.analysis._files import Files
from robustjax.analysis._leaderboard import of_draws
from robustjax.analysis.summary import Row, data_of, leaves
from robustjax.analysis.svg import Bar, Series, bars, foldable, lines, text
from robustjax.evaluation.protocol.tables import html_table

_Shown = Sequence[tuple[Row, Files]]


def epsilon(shown: _Shown) -> str:
    """One chart for each attack that was swept, the networks over each other."""
    charts: dict[str, list[Series]] = {}
    marked = chance = None
    for row, files in shown:
        if files.sweep is None:
            continue
        marked, chance = files.sweep.get("epsilon"), files.sweep.get("chance")
        for attack in dict.fromkeys(point["attack"] for point in files.sweep["points"]):
            points = sorted((p for p in files.sweep["points"] if p["attack"] == attack), key=lambda p: p["epsilon"])
            charts.setdefault(attack, []).append(
                Series(
                    row.label,
                    [(point["epsilon"], point["accuracy"]) for point in points],
                    [tuple(point["interval_95"]) for point in points],
                )
            )
    if not charts:
        return ""
    drawn = "".join(
        lines(series, title=f"Accuracy under {attack}", x_label="epsilon", marked=marked, chance=chance)
        for attack, series in charts.items()
    )
    return f'<p class="note">Dotted: the epsilon trained for; dashed: chance.</p><div class="charts wide">{drawn}</div>'


def flags(shown: _Shown) -> str:
    """The verdict of each network that has one: its sentence, the flags that fired, and what its program hides."""
    parts = []
    for row, files in shown:
        trust = files.trust
        if trust is None:
            continue
        fired = [flag for flag in trust["flags"].values() if flag["status"] in ("fail", "warn")]
        items = "".join(map(_flag, sorted(fired, key=lambda flag: flag["status"])))
        listed = f'<ul class="flags">{items}</ul>' if items else ""  # the verdict says that there is none
        statuses = [flag["status"] for flag in trust["flags"].values()]
        parts.append(
            f"<article><h3>{text(row.label)}</h3><p>{text(trust['verdict'])}</p>{_decided(row, trust)}{listed}"
            f'<p class="note">{statuses.count("pass")} of {len(statuses) - statuses.count("na")} checks passed; '
            f"{statuses.count('na')} do not apply.</p>{_findings(row, trust)}</article>"
        )
    return "".join(parts)


def _decided(row: Row, trust: Mapping[str, Any]) -> str:
    """How a verdict on a stochastic network counts, where its accuracies above may be counted otherwise."""
    if not trust.get("acceptance"):
        return ""
    other = of_draws(row, None)
    beside = f"; the leaderboard shows the {other}" if other else ""
    return f'<p class="note">Stochastic: this figure counts examples by the majority of draws{beside}.</p>'


def examples(shown: _Shown) -> str:
    """Images, magnified perturbations and adversarial images, with the network's predictions."""
    parts = []
    for row, files in shown:
        names = _class_names(row)
        if files.gallery:
            cards = "".join(_card(example, names) for example in files.gallery)
            parts.append(f'<article><h3>{text(row.label)}</h3><ul class="gallery">{cards}</ul></article>')
        elif files.picture:
            label = f"Images, perturbations and adversarial images of {row.label}, with predictions"
            parts.append(f"<article><h3>{text(row.label)}</h3>{_picture(row.label, label, files.picture)}</article>")
    return "".join(parts)


def classes(rows: Sequence[Row]) -> str:
    """Accuracy of each class on clean images and in the worst case."""
    charts = []
    for row in rows:
        groups = []
        for attack, name in (("clean", "clean"), ("worst_case", "worst case")):
            record = row.records.get(attack, {})
            own = record.get("per_class")
            if own and len(own) <= 20:
                groups.append(
                    (name, [Bar(str(c.get("name", c["class"])), c["accuracy"], tuple(c["interval_95"])) for c in own])
                )
        if groups:
            charts.append(bars(groups, title=row.label))
    note = '<p class="note">Upright lines: 95 % intervals, which are wide as each class has few images.</p>'
    return f'{note}<div class="charts">{"".join(charts)}</div>' if charts else ""


def training(shown: _Shown) -> str:
    """Validation accuracy over the epochs of each network's first run."""
    charts = []
    for row, files in shown:
        points: dict[str, list[tuple[float, float]]] = {}
        for line in files.metrics:
            for key, value in line.items():
                if line["split"] == "validation" and key.endswith("_accuracy") and isinstance(value, int | float):
                    points.setdefault(key.removesuffix("_accuracy"), []).append((float(line["epoch"]), float(value)))
        if points:
            series = [Series(name, values) for name, values in points.items()]
            charts.append(lines(series, title=row.label, x_label="epoch", y_label="validation accuracy"))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def figures(shown: _Shown) -> str:
    """The figures of ``python -m robustjax.analysis``; of the same figures of one network, those of its first row."""
    parts, seen = [], set()
    for row, files in shown:
        if not files.figures or row.workdirs[0] in seen:
            continue
        seen.add(row.workdirs[0])
        own = "".join(
            f"<figure><figcaption>{text(title)}</figcaption>{_picture(title, words, png)}</figure>"
            for title, words, png in files.figures.values()
        )
        said = _drawn(files.analysis or {}, shown)
        parts.append(
            f"<details><summary>{text(row.label)}: {len(files.figures)} figures</summary>{said}{own}</details>"
        )
    if parts:
        parts[0] = parts[0].replace("<details>", "<details open>", 1)
    return "".join(parts)


def _drawn(analysis: Mapping[str, Any], shown: _Shown) -> str:
    """Which network of this page is which in its figures, where they are called by their folders."""
    labels: dict[str, str] = {}
    for row, _ in shown:
        for workdir in row.workdirs:
            labels.setdefault(workdir.resolve().name, row.label)
    networks = analysis.get("networks")
    names = [name for name in networks if name in labels] if isinstance(networks, dict) else []
    told = "; ".join(f"{name} is {labels[name]}" for name in names if name != labels[name])
    return f'<p class="note">In these figures {text(told)}.</p>' if told else ""


def configs(rows: Sequence[Row]) -> str:
    """The keys in which the configs of runs differ, a column a network."""
    rows = [row for row in rows if row.seeds]
    if not rows:
        return ""
    flat = [dict(leaves({key: value for key, value in row.record["config"].items() if key != "seed"})) for row in rows]
    keys = [key for key in dict.fromkeys(key for entry in flat for key in entry)
            if any(entry.get(key) != flat[0].get(key) for entry in flat)]  # fmt: skip
    if not keys:
        return ""
    head = "".join(f'<th scope="col">{foldable(row.label)}</th>' for row in rows)
    body = "".join(
        f'<tr><th scope="row"><code>{text(key)}</code></th>'
        + "".join(f"<td>{text(entry.get(key))}</td>" for entry in flat)
        + "</tr>"
        for key in keys
    )
    table = f'<table class="board"><thead><tr><th scope="col">key</th>{head}</tr></thead><tbody>{body}</tbody></table>'
    return _scrolled("Differences of the configs", table)


def provenance(shown: _Shown) -> str:
    """Data, threat, code, versions and hardware of each network."""
    parts = []
    for row, files in shown:
        record = row.record
        facts = {
            "data": f"{data_of(record)}, {record['num_examples']:,} images",
            "threat": ", ".join(row.threats),
            "network": record["config"]["model"]["name"],
            "checkpoint": f"step {record['checkpoint_step']:,}" if record.get("checkpoint_step") is not None else None,
            "weights": record.get("weights") or (record.get("network") or {}).get("weights_sha256"),
            "BatchNorm": record.get("batch_norm"),
            "attacks": ", ".join(row.records),
            "code": ", ".join([f"commit {record.get('commit')}", *(f"{k} {v}" for k, v in _of(record, "versions"))]),
            "hardware": ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in _of(record, "hardware")) or None,
            "folder": ", ".join(map(str, row.workdirs)),
            "analysis": f"on {files.analysis['num_examples']} images" if files.analysis else None,
        }
        items = "".join(f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in facts.items() if value is not None)
        parts.append(f"<details><summary>{text(row.label)}</summary><dl>{items}</dl></details>")
    return "".join(parts)


def _of(record: Mapping[str, Any], name: str) -> Iterable[tuple[str, Any]]:
    """What a record says by name; nothing where it is of a version that did not."""
    return (record.get(name) or {}).items()


def _flag(flag: Mapping[str, Any]) -> str:
    status, name = text(flag["status"]), text(flag["name"].replace("_", " "))
    against = f" against {_number(flag['threshold'])}" if flag["threshold"] is not None else ""
    measured = f"{_number(flag['value'])}{against} on {flag['n']:,} images" if flag["value"] is not None else ""
    return (
        f'<li><span class="badge {status}">{status}</span> <b>{name}</b> <small>{measured}</small>'
        f"<div>{text(flag['explanation'])}</div></li>"
    )


def _findings(row: Row, trust: Mapping[str, Any]) -> str:
    found = trust.get("findings") or []
    if not found:
        return ""
    keys = list(dict.fromkeys(key for finding in found for key in finding))
    table = html_table(keys, [[str(finding.get(key, "")) for key in keys] for finding in found])
    return f"<h4>What its program hides</h4>{_scrolled(f'Findings in {row.label}', table)}"


def _card(example: _files.Example, names: Mapping[str, str]) -> str:
    label, before, after = (names.get(k, k) for k in (example.label, example.predicted, example.adversarial_predicted))
    pictures = "".join(
        f'<img alt="{text(words)}" src="{_files.data_url(png)}">'
        for words, png in (
            (f"image {example.index}, predicted {before}", example.image),
            (f"perturbation, {example.factor:.1f} times magnified around grey", example.perturbation),
            (f"adversarial image, predicted {after}", example.adversarial),
        )
    )
    return (
        f'<li><div class="triple">{pictures}</div><p>{text(before)} <span aria-hidden="true">→</span>'
        f'<span class="hidden">becomes</span> <b class="wrong">{text(after)}</b></p>'
        f"<small>label {text(label)}; difference &times; {example.factor:.1f}</small></li>"
    )


def _picture(title: str, words: str, png: bytes) -> str:
    """A figure, which small screens scroll rather than shrink."""
    image = f'<img class="paper" alt="{text(words)}" src="{_files.data_url(png)}">'
    return f'<div class="wide-picture" tabindex="0" role="region" aria-label="{text(title)}">{image}</div>'


def _class_names(row: Row) -> dict[str, str]:
    for record in row.records.values():
        if record.get("per_class"):
            return {str(c["class"]): str(c.get("name", c["class"])) for c in record["per_class"]}
    return {}


def _scrolled(label: str, table: str) -> str:
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}">{table}</div>'


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
