"""The sections of the report page, each HTML text, empty where the runs have nothing to show in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from robustjax.analysis import _files
from robustjax.analysis._files import Files
from robustjax.analysis.summary import Cell, Row, data_of, leaves
from robustjax.analysis.svg import Bar, Series, bars, foldable, interval, lines, text
from robustjax.evaluation.protocol.tables import html_table

# The attacks that papers evaluate with, by the beginning of their names.
PROTOCOL = ("fgsm", "pgd", "cw")
# Attacks, and the clean accuracy, that the heads of the leaderboard name.
NAMED = ("clean", "autoattack", "adaptive", "worst_case")
NOTHING = '<td data-value="-1">&ndash;</td>'
NO_FLAG = '<span class="badge pass">none</span>'
_Shown = Sequence[tuple[Row, Files]]


def leaderboard(shown: _Shown) -> str:
    """A row for each network; sorted by any column, filtered by its text."""
    columns = {
        "Clean": lambda row: _named(row, ["clean"]),
        "Paper's protocol": lambda row: _named(row, _attacks(row, PROTOCOL)),
        "AutoAttack": lambda row: _named(row, _attacks(row, ("autoattack",))),
        "Adaptive": lambda row: _named(row, _attacks(row, ("adaptive",))),
        "Worst case": lambda row: _named(row, ["worst_case"]),
    }
    present = {name: read for name, read in columns.items() if any(read(row) for row, _ in shown)}
    seeded = any(row.seeds for row, _ in shown)  # runs among them
    headings = ["Network", *(["Seeds"] if seeded else []), *present, "Flags"]
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button" data-column="{i}">{text(name)}</button></th>'
        for i, name in enumerate(headings)
    )
    body = []
    for row, files in shown:
        cells = [f'<th scope="row">{foldable(row.label)}</th>']
        if seeded:
            cells.append(f'<td class="narrow">{", ".join(map(str, row.seeds))}</td>')
        for read in present.values():
            found = read(row)
            # Which attack it is, where the head of the column does not say it.
            cells.append(_accuracy(*found, told=found[0].split(" (")[0] not in NAMED) if found else NOTHING)
        cells.append(_flag_cell(files.trust))
        body.append(f"<tr>{''.join(cells)}</tr>")
    missing = ",".join(name.lower() for name in ("AutoAttack", "Adaptive") if name not in present)
    said = {
        "autoattack,adaptive": "No network has AutoAttack or adaptive attacks: these figures are upper bounds by "
        "the usual attacks, and not yet to be trusted",
        "autoattack": "No network has AutoAttack, by which others compare",
        "adaptive": "No network has adaptive attacks, which say whether the figures can be trusted",
    }
    note = (
        f'<p class="note">{said[missing]}; <code>evaluate --attacks={missing}</code> adds '
        f"{'it' if missing == 'autoattack' else 'them'}.</p>"
        if missing
        else ""
    )
    return (
        '<div class="tools"><label for="filter">Filter networks</label> '
        '<input id="filter" type="search" autocomplete="off" placeholder="name, seed, flag …"> '
        f'<span id="count" role="status">{len(shown)} of {len(shown)} shown</span></div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Leaderboard"><table id="board" class="board">'
        f'<caption class="hidden">Accuracy of each network in per cent; the column heads sort</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{note}"
    )


def every_attack(rows: Sequence[Row], attacks: Sequence[str]) -> str:
    """Mean, spread over seeds and interval of every attack."""
    head = "".join(
        f'<th scope="col" title="{text(attack)}">{foldable(_short(attack_name(attack)))}</th>' for attack in attacks
    )
    body = ""
    for row in rows:
        cells = "".join(_accuracy(attack, row.cells[attack]) if attack in row.cells else NOTHING for attack in attacks)
        body += f'<tr><th scope="row">{foldable(row.label)}</th>{cells}</tr>'
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Accuracy under every attack"><table class="board">'
        f'<thead><tr><th scope="col">Network</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def attack_name(attack: str) -> str:
    """An attack as tables head it: as it is spelled, for options and files may have underscores.

    Example:
        >>> attack_name("worst_case"), attack_name("transfer:runs/at_0")
        ('worst case', 'transfer:runs/at_0')
    """
    return attack.replace("worst_case", "worst case", 1) if attack.startswith("worst_case") else attack


def _short(attack: str) -> str:
    """Without the folders in which the source of a transfer lies, for the head of a column.

    Example:
        >>> _short("transfer:apgd@/home/me/runs/at_0"), _short("pgd:step_size=2/255")
        ('transfer:apgd@…/at_0', 'pgd:step_size=2/255')
    """
    return re.sub("@.*/", "@…/", attack)


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
            f"<article><h3>{text(row.label)}</h3><p>{text(trust['verdict'])}</p>{listed}"
            f'<p class="note">{statuses.count("pass")} of {len(statuses) - statuses.count("na")} checks passed; '
            f"{statuses.count('na')} do not apply.</p>{_findings(row, trust)}</article>"
        )
    return "".join(parts)


def examples(shown: _Shown) -> str:
    """Images, magnified perturbations and adversarial images, with what the network takes them for."""
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


def _attacks(row: Row, beginnings: Sequence[str]) -> list[str]:
    return [attack for attack in row.cells if attack.startswith(tuple(beginnings))]


def _named(row: Row, attacks: Sequence[str]) -> tuple[str, Cell] | None:
    """The attack that leaves least accuracy, and its cell."""
    cells = [(attack, row.cells[attack]) for attack in attacks if attack in row.cells]
    return min(cells, key=lambda pair: pair[1].mean) if cells else None


def _accuracy(attack: str, cell: Cell, *, told: bool = False) -> str:
    low, high = cell.interval
    spread = f" ± {100 * cell.spread:.1f}" if len(cell.accuracies) > 1 else ""
    which = f"<small>{foldable(attack.removeprefix('autoattack:'))}</small>" if told else ""
    return (
        f'<td data-value="{cell.mean:.6f}"><b>{100 * cell.mean:.1f}</b>{spread}'
        f"<small>{100 * low:.1f} to {100 * high:.1f}</small>{which}{interval(cell.mean, cell.interval)}</td>"
    )


def _flag_cell(trust: Mapping[str, Any] | None) -> str:
    if trust is None:
        return '<td data-value="-1">not evaluated</td>'
    flags = trust["flags"].values()
    counts = {status: [f["name"] for f in flags if f["status"] == status] for status in ("fail", "warn")}
    badges = "".join(
        f'<span class="badge {status}" title="{text(", ".join(names))}">{len(names)} {word}</span>'
        for (status, names), word in zip(counts.items(), ("failed", "warned"), strict=True)
        if names
    )
    found = trust.get("findings") or []
    count = "1 finding" if len(found) == 1 else f"{len(found)} findings"
    where = f"<small>{count} in the program</small>" if found else ""
    names = text(", ".join(name.replace("_", " ") for name in counts["fail"]))
    order = len(counts["fail"]) + len(counts["warn"]) / 100
    return f'<td data-value="{order}">{badges or NO_FLAG}<small>{names}</small>{where}</td>'


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
