"""What a profile is asked for: which strategy writes, and which metric is shown.

Nothing here imports torch.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from hybridgen.checks import check_bool, check_choice, quoted
from hybridgen.strategies.declarations import THRESHOLDS

DEFAULT = "uncertainty"


class Asked(NamedTuple):
    """A strategy by name, and the metric that its profile shows."""

    strategy: str
    metric: str


def asked_for(
    strategies: Collection[str],
    strategy: str | None,
    threshold: Any,
    llm_fraction: Any,
    routing_metric: str | None,
    enable_routing: bool | None,
) -> Asked:
    """Who is to write, by the arguments of `generate_with_profile` of these names.

    strategies    the known names

    Raises ValueError or TypeError, naming the argument, where one contradicts another.
    """
    if routing_metric is not None:
        check_choice("routing_metric", routing_metric, THRESHOLDS)
    if enable_routing is not None:
        check_bool("enable_routing", enable_routing)
    values = {"threshold": threshold, "llm_fraction": llm_fraction}
    given = next((name for name, value in values.items() if value is not None), None)
    metric = routing_metric or DEFAULT
    if strategy is None:
        routes = enable_routing
        if routes is None:
            routes = given is not None or routing_metric is not None
        strategy, why = metric if routes else "slm", f"enable_routing={enable_routing}"
    else:
        check_choice("strategy", strategy, strategies)
        routes, why = strategy in THRESHOLDS, f"strategy={quoted(strategy)}"
        if enable_routing is not None and enable_routing != routes:
            does = "routes" if routes else "does not route"
            raise ValueError(f"enable_routing={enable_routing} contradicts {why}, which {does}")
        if routes and routing_metric not in (None, strategy):
            raise ValueError(
                f"routing_metric={quoted(routing_metric)} contradicts {why}, which routes by "
                f"{quoted(strategy)}"
            )
        metric = strategy if routes else metric
    if given is not None and not routes:
        raise ValueError(f"{given} routes tokens to the LLM, and with {why} nothing is routed")
    return Asked(strategy, metric)
