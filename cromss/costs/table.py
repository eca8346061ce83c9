"""An estimate as a table for people."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cromss.costs.estimate import Estimate, Row


def lines(estimate: "Estimate") -> list[str]:
    """Title, one line a row, facts, notes."""
    money = estimate.money is not None
    width = max(len(row.name) for row in estimate.rows)
    head = f"{'':{width}}  {'number':>9}  {'each':>10}  {'time':>10}  {estimate.unit:>12}"
    found = [f"{estimate.title} on {estimate.device}", "", head + (f"  {'money':>10}" if money else "") + "  how"]
    found += [f"{row.name:{width}}  {_cells(row, money)}" for row in estimate.rows]
    if estimate.facts:
        widest = max(len(fact.name) for fact in estimate.facts)
        found.append("")
        found += [f"{fact.name:{widest}}  {amount(fact.value)} {fact.unit}".rstrip() + f"  ({fact.how})"
                  for fact in estimate.facts]  # fmt: skip
    return [*found, "", *estimate.notes] if estimate.notes else found


def _cells(row: "Row", money: bool) -> str:
    cells = f"{row.number:>9,.0f}  {clock(row.each):>10}  {clock(row.seconds):>10}  {amount(row.device_hours):>12}"
    paid = f"  {amount(row.money):>10}" if money else ""
    return f"{cells}{paid}  {row.how}{f', bound by {row.bottleneck}' if row.bottleneck else ''}"


def clock(seconds: float) -> str:
    """`0.123 s`, `4.5 s`, `3:07 min`, `12:34 h`, `3.2 days`."""
    if seconds < 100:
        return f"{seconds:.3f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes}:{rest:02d} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}:{minutes:02d} h" if hours < 100 else f"{hours / 24:,.1f} days"


def amount(value: float) -> str:
    """A number with three figures that mean something; thousands separated."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
