"""Reports as tables; each takes the plain dictionary that `--json` would print, so both always say the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loop.terminal import print_facts, print_table, show


def print_training(report: Mapping[str, Any]) -> None:
    """A version's metrics and gates."""
    training = report["training"]
    rows = [(name, found["value"], found["low"], found["high"]) for name, found in training["metrics"].items()]
    title = f"{training['task']}@{training['version']} ({training['status']}): holdout, 95 % intervals"
    print_table(title, ("metric", "value", "low", "high"), rows)
    print_gates(report["gates"])
    print_facts("Card", {"for people": training["card"]})


def print_gates(gates: list[Mapping[str, Any]]) -> None:
    """Each gate with its evidence."""
    rows = [(gate["name"], gate["verdict"], gate["threshold"], gate["evidence"]) for gate in gates]
    print_table("Gates", ("gate", "verdict", "needs", "found"), rows)


def print_reproduction(report: Mapping[str, Any]) -> None:
    """Each result then and now; circumstances and source files only where they differ."""
    verdict = "reproduced" if report["reproduced"] else "NOT reproduced"
    rows = [(each["name"], each["recorded"], each["found"], each["equal"]) for each in report["results"]]
    print_table(f"Run {report['run_id']}: {verdict}", ("", "recorded", "found", "equal"), rows)
    other = [(each["name"], each["recorded"], each["found"]) for each in report["circumstances"] if not each["equal"]]
    if other:
        print_table("Made under other circumstances", ("", "then", "now"), other)
    files = [(how, path) for how, paths in report["sources"].items() for path in paths]
    if files:
        print_table("Source files that are not the same", ("", "file"), files)


def print_task(report: Mapping[str, Any]) -> None:
    """What is wrong with a task, and what will happen."""
    if report["problems"]:
        rows = [(problem["field"], problem["fact"], problem["hint"]) for problem in report["problems"]]
        print_table(f"{report['task']} cannot be trained", ("field", "what is wrong", "what to do"), rows)
    else:
        facts = {"features": len(report["features"]), "notes": "; ".join(report["notes"]) or "none"}
        print_facts(f"{report['task']} ({report['kind']}) can be trained", facts)
    choice = [(name, each["used"], each["reason"]) for name, each in report["choice"].items()]
    if choice:
        print_table("Decided by the task", ("", "used", "why"), choice)
    parts = [
        (part["part"], f"{part['from']:%F %H:%M}", f"{part['until']:%F %H:%M}", part["length"], part["cases"])
        for part in report["parts"]
    ]
    if parts:
        print_table("Window (UTC)", ("part", "from", "until", "length", "labelled cases"), parts)
    for name, rules in report["policy"].items():
        print_table(name.capitalize(), ("", "rule"), [(rule["what"], rule["rule"]) for rule in rules])


def print_audit(report: Mapping[str, Any]) -> None:
    """An audit's findings, worst first, and the sources behind the frame."""
    title = (
        f"Audit of {report['task']}: {report['rows']:,} cases, {report['start'][:16]} to {report['cutoff'][:16]} UTC"
    )
    rows = [(f["severity"], f["rule"], f["subject"], f["evidence"], f["action"]) for f in report["findings"]]
    print_table(title, ("severity", "rule", "feature or view", "evidence", "what to do"), rows)
    sources = [
        (s["view"], s["in_window"], _hours(s["age"]), _hours(s["limit"]), _hours(s["delays"][2]), f"{s['covered']:.1%}")
        for s in report["sources"]
    ]
    columns = ("view", "rows in window", "newest, hours old", "stale beyond", "latest arrival, hours", "rows covered")
    print_table("Sources", columns, sources)
    strongest = sorted((f for f in report["features"] if f["auc"]), key=lambda f: -f["auc"])[:10]
    found = [(f["name"], f["auc"], f["auc_earlier"], f"{f['missing']:.1%}", f["distinct"]) for f in strongest]
    shift = f"{_hours(round(report['shift_seconds'] * 1e6))} hours earlier"
    print_table("Strongest alone", ("feature", "ROC AUC", shift, "missing", "different values"), found)


def print_skew(report: Mapping[str, Any]) -> None:
    """What was compared, each feature that differs, and what the differences look like."""
    facts = {"share of keys": report["share"], "asked from": report["first"], "to": report["last"]}
    facts |= {"rows compared": report["rows"]}
    facts |= {f"rows set aside: {reason}": count for reason, count in report["set_aside"].items()}
    facts |= {"values judged": report["checked"], "mismatches": report["mismatches"]}
    facts |= {f"values not judged: {reason}": count for reason, count in report["not_judged"].items()}
    if report["unknown"]:
        facts["no longer in the feature service"] = ", ".join(report["unknown"])
    print_facts("Skew audit", facts)
    wrong = [feature for feature in report["features"] if feature["mismatches"] or feature["not_judged"]]
    if wrong:
        counts = ("mismatches", "missing", "extra", "largest")
        rows = [(f["name"], *(f[count] for count in counts), _counts(f["causes"], f["not_judged"])) for f in wrong]
        print_table("Features that differ", ("feature", *counts, "causes"), rows)
    examples = [(f["name"], *_example(each)) for f in wrong for each in f["examples"]]
    if examples:
        columns = ("feature", "served", "training sees", "asked at", "about")
        print_table("Examples, the earliest first", columns, examples)


def _example(example: Mapping[str, Any]) -> tuple[Any, ...]:
    rows = [f"{view} answered with {at[:19] if at else 'no row'}" for view, at in example["view_times"].items()]
    keys = ", ".join(f"{key}={value}" for key, value in example["keys"].items())
    request = f"request {example['request_id']}[{example['position']}] of version {example['version']}"
    about = "\n".join([example["cause"], keys, request, *rows])
    return example["online"], example["offline"], example["event_timestamp"][:19], about


def _counts(causes: Mapping[str, int], not_judged: Mapping[str, int]) -> str:
    told = [f"{count:,} {name}" for name, count in causes.items()]
    return ", ".join([*told, *(f"not judged: {count:,} {name}" for name, count in not_judged.items())])


def print_monitoring(report: Mapping[str, Any], decision: Mapping[str, Any]) -> None:
    """Performance and drift by chunk, then the decision."""
    metric = report["metric"]
    rows = [
        (
            chunk["start"][:16],
            chunk["rows"],
            chunk["state"],
            _band(chunk["estimated"]),
            _band(chunk["realized"]),
            chunk["maturity"],
            f"{len(chunk['drifted_features'])} of {len(chunk['drift'])}{' +' if chunk['drifted_together'] else ''}",
            "" if chunk["cost"] is None else show(chunk["cost"]["value"]),
        )
        for chunk in report["chunks"]
    ]
    columns = ("chunk", "rows", "state", f"estimated {report['estimated_metric']}", f"realized {metric}", "labelled")
    print_table(
        f"{report['task']}@{report['version']} as of {report['as_of'][:16]}", (*columns, "drifted", "cost a case"), rows
    )
    trust = report["estimator"]
    print_facts(
        "Decision",
        {
            "action": decision["action"],
            "rule": decision["rule"],
            "why": "; ".join(decision["reasons"]),
            "next": decision["next_step"],
            "estimator": _trust(trust),
            "labels": _labels(report["labels"]),
            "work": "{measured} chunks measured, {realized} with new labels, {kept} kept".format(**report["work"]),
            "notes": "; ".join(report["notes"]),
        },
    )


def print_batch(report: Mapping[str, Any]) -> None:
    """What a batch job predicted."""
    facts = {
        "cases asked about until": report["until"][:16],
        "cases": report["cases"],
        "that no request could ask about": report["refused"],
        "feature view": report["view"],
        "Parquet files in": report["folder"],
    }
    if report["challenger_error"]:
        facts["challenger"] = report["challenger_error"]
    print_facts(f"{report['task']} as of {report['at'][:16]} UTC", facts)
    rows = [
        (each["version"], each["variant"], each["rows"], each["written"], each["scored_by"])
        for each in report["versions"]
    ]
    if rows:
        print_table("Predicted", ("version", "for", "rows", "online", "scored by"), rows)


def print_run(parts: Mapping[str, Any]) -> None:
    """Everything a run did, and what failed."""
    ingested = parts["ingest"]
    rows = [(name, count, ingested["quarantined"].get(name, 0)) for name, count in ingested["landed"].items()]
    print_table("Ingested", ("table", "rows", "quarantined"), rows)
    print_training(parts)
    if "serving" in parts:
        _print_releases(parts["rollout"])
        if "monitoring" in parts:
            print_monitoring(parts["monitoring"], parts["decision"])
        _print_books(parts)
    if parts["failures"]:
        print_table("Failed", ("what",), [(failure,) for failure in parts["failures"]])


def frame_rows(training: Mapping[str, Any]) -> int:
    """Labelled rows of the frame: every part of the split, and those its embargo kept out of one."""
    parts = sum(count for part, count in training["rows"].items() if part != "unlabelled")
    return int(parts + sum(training["embargoed"].values()))


def _print_releases(rollout: Mapping[str, Any]) -> None:
    rows = [
        (event["at"][:16], event["version"], f"{event['from_stage']} -> {event['to_stage']}", event["share"])
        for event in rollout["moves"]
    ]
    print_table("Releases", ("at", "version", "move", "share"), rows)


def _print_books(parts: Mapping[str, Any]) -> None:
    serving, log, skew, training = parts["serving"], parts["log"], parts["skew"], parts["training"]
    facts = {
        "online rows materialized": parts["features"]["rows_materialized"],
        "frame rows": frame_rows(training),
        "dataset hash": training["dataset_hash"],
        "model hash": training["model_hash"],
        "requests": serving["requests"],
        "p50 / p99 at the caller": f"{show(serving['p50_ms'])} / {show(serving['p99_ms'])} ms",
        "refused": serving["refused"] or "none",
        "answered = logged + lost": f"{log['answered']:,} = {log['logged']:,} + {log['lost']:,}",
        "skew": f"{skew['mismatches']:,} mismatches in {skew['checked']:,} values of {skew['rows']:,} vectors",
        "aliases": ", ".join(f"{alias} -> {version}" for alias, version in parts["rollout"]["aliases"].items()),
        "rollback drill": "passed" if parts["rollout"]["drill_passed"] else "not passed",
    }
    if "retraining" in parts:
        again = parts["retraining"]
        facts["retrained"] = f"version {again['version']} ({again['status']})"
    print_facts("The run", facts)


def _hours(micros: int | None) -> str:
    return "" if micros is None else show(micros / 3_600_000_000)


def _band(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return ""
    return f"{found['value']:.3f} ({show(found['low'])} to {show(found['high'])})"


def _labels(account: Mapping[str, int] | None) -> str:
    """How many labels were used, and why others were not."""
    if account is None:
        return "none"
    used = f"{account['joined']:,} predictions have one"
    refused = {name: count for name, count in account.items() if count and name not in ("known", "joined")}
    return ", ".join([used, *(f"{count:,} {name.replace('_', ' ')}" for name, count in refused.items())])


def _trust(trust: Mapping[str, Any]) -> str:
    if trust["trusted"] is None:
        return "not scored yet: no chunk's labels have settled"
    error, chunks = trust["mean_error"], trust["chunks"]
    word = "trusted" if trust["trusted"] else "not trusted"
    return f"{word}: off by {error:.4f} on average over {chunks} chunks, tolerance {trust['tolerance']}"
