"""The page of a learning-rate range test."""

import re

from vitrail.reports.sweeppage import SweepPage, render_sweep_page


def test_a_loss_that_explodes_does_not_flatten_the_fall_before_it():
    losses = (2.3, 2.2, 2.0, 2.1, 2.4, 60.0)
    rates = tuple(10.0**place for place in range(-6, 0))
    page = SweepPage(title="t", subtitle="s", rates=rates, losses=losses, smooth=losses, suggestion=1e-3)
    html = render_sweep_page(page)
    ticks = [float(tick) for tick in re.findall(r'class="tick-y"[^>]*>([\d.]+)<', html)]
    assert max(ticks) < 1.2 * losses[0]
    assert len(ticks) >= 3
    assert "cut off at the top" in html
