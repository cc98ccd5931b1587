"""Batch-wise inference, the first baseline: a padded batch is filled and runs until its longest query is done."""

from __future__ import annotations

from baton.policy.port import ALL_PENDING, Feeding, Plan, View


class RunToCompletion:
    """Takes as many waiting queries as there are rows, and nothing more until all of them are done.

    As a baseline it computes every prompt, and no prompt waits for another one's prefix.
    """

    prompts_in_step = True
    pads = True
    keeps_prefixes = False

    def plan(self, view: View) -> Plan:
        if view.running:
            why = f"{len(view.running)} of {len(view.running) + view.held_rows} rows still run; newcomers wait"
            return Plan(feed=ALL_PENDING, how=Feeding.PADDED, hold_finished=True, why=why)
        # Ready queries are those that were detached. They come first, because they were here before.
        chosen = view.fitting([*view.ready, *view.waiting], view.max_rows)
        return Plan(
            resize=view.max_rows if view.rows != view.max_rows else None,
            insert=tuple(query.id for query in chosen),
            feed=ALL_PENDING,
            how=Feeding.PADDED,
            hold_finished=True,
            why=f"the batch is empty: {len(chosen)} queries begin together",
        )
