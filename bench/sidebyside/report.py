"""Medians, ratios and the two outputs: a table for people, JSON for the rest."""

import json
import statistics

LATENCIES = ("p50", "p99", "p99.9", "p99.99", "max")


def median_of(samples):
    """The medians of a (subject, workload)'s rounds, and how far apart the rounds were."""
    iops = [sample["iops"] for sample in samples]
    return {
        "rounds": len(samples),
        "iops": statistics.median(iops),
        "iops_min": min(iops),
        "iops_max": max(iops),
        "bytes_per_second": statistics.median(sample["bytes_per_second"] for sample in samples),
        "latency_us": {
            key: statistics.median(sample["latency_us"][key] for sample in samples)
            for key in LATENCIES
        },
        "cpus_busy": statistics.median(sample["cpus_busy"] for sample in samples),
        "others_cpus_busy": max(sample["others_cpus_busy"] for sample in samples),
        "stolen_cpus": max(sample["stolen_cpus"] for sample in samples),
    }


def _microseconds(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def table(rows, header):
    """Columns as wide as they need to be; all but the first to the right."""
    cells = [header, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join([first, *rest]).rstrip())
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def figures(medians, remarks):
    """One table a workload, with what is remarked of it."""
    parts = []
    workloads = dict.fromkeys(workload for _, workload in medians)
    header = ["", "IOPS", "MB/s", *LATENCIES, "target CPU", "rounds' IOPS"]
    for workload in workloads:
        rows = []
        for (subject, name), median in medians.items():
            if name != workload:
                continue
            rows.append(
                [
                    subject,
                    f"{median['iops']:,.0f}",
                    f"{median['bytes_per_second'] / 1e6:,.0f}",
                    *(_microseconds(median["latency_us"][key]) for key in LATENCIES),
                    f"{median['cpus_busy']:.2f}",
                    f"{median['iops_min']:,.0f}..{median['iops_max']:,.0f}",
                ]
            )
        remark = f"; {remarks[workload]}" if workload in remarks else ""
        parts.append(f"{workload} (latencies in µs{remark})\n{table(rows, header)}")
    return "\n\n".join(parts)


def ratios(medians, wanted):
    """`wanted`: (label, subject, workload, base subject, base workload, measure, "at least" or "at most", bound or None)."""
    results = []
    for label, subject, workload, base, base_workload, measure, direction, bound in wanted:
        over, under = medians.get((subject, workload)), medians.get((base, base_workload))
        if over is None or under is None:
            continue
        ratio = _pick(over, measure) / _pick(under, measure)
        kept = None if bound is None else (ratio >= bound if direction == "at least" else ratio <= bound)
        results.append(
            {
                "what": label,
                "workload": workload,
                "measure": measure,
                "ratio": ratio,
                "direction": direction,
                "bound": bound,
                "kept": kept,
            }
        )
    return results


def _pick(median, measure):
    return median["iops"] if measure == "IOPS" else median["latency_us"][measure]


def ratio_table(results):
    rows = []
    for result in results:
        bound = "" if result["bound"] is None else f"{result['direction']} {result['bound']:g}"
        kept = {None: "", True: "yes", False: "NO"}[result["kept"]]
        rows.append([f"{result['what']}, {result['workload']}", result["measure"], f"{result['ratio']:.2f}", bound, kept])
    return table(rows, ["ratio", "of", "measured", "wanted", "kept"])


def write_json(path, document):
    with open(path, "w") as file:
        json.dump(document, file, indent=2)
        file.write("\n")


def _markdown_table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def markdown(document):
    """The figures as docs/PERFORMANCE.md has them."""
    parts = []
    for workload in dict.fromkeys(figure["workload"] for figure in document["figures"]):
        rows = [
            [
                figure["subject"],
                f"{figure['iops']:,.0f}",
                *(_microseconds(figure["latency_us"][key]) for key in LATENCIES),
                f"{figure['iops_min']:,.0f} to {figure['iops_max']:,.0f}",
            ]
            for figure in document["figures"]
            if figure["workload"] == workload
        ]
        header = ["", "IOPS", *LATENCIES, "IOPS of the rounds"]
        remark = f"; {document['remarks'][workload]}" if workload in document["remarks"] else ""
        parts.append(f"**{workload}**, latencies in µs{remark}\n\n{_markdown_table(header, rows)}")
    rows = [
        [
            f"{result['what']}, {result['workload']}, {result['measure']}",
            f"{result['ratio']:.2f}",
            "" if result["bound"] is None else f"{result['direction']} {result['bound']:g}",
        ]
        for result in document["ratios"]
    ]
    parts.append(_markdown_table(["ratio", "measured", "wanted"], rows))
    return "\n\n".join(parts) + "\n"
