"""Numbered pictures cross nodes with nothing missing."""

import asyncio
import os

from media import Client, together, until

SECONDS = float(os.environ.get("FLOTILLA_COUNT_SECONDS", "60"))


def test_hardly_a_frame_is_missing(cluster, room):
    async def scenario():
        one = Client(cluster.url(1), room, "one")
        two = Client(cluster.url(2), room, "two")
        async with together(one, two):
            await one.publish_counter(320, 180, fps=15)
            await until(lambda: two.sees_motion("one", 20), 20, "pictures flow")
            await asyncio.sleep(2)  # The encoder's rate has settled; what is measured starts here.
            first = max(two.counters["one"])
            await asyncio.sleep(SECONDS)
            last = max(two.counters["one"])
            seen = {count for count in two.counters["one"] if first <= count <= last}
            sent = last - first + 1
            missing = sent - len(seen)
            routes = cluster.admin("routes", room)["routes"]
            print(f"{sent} pictures sent, {missing} missing ({100 * missing / sent:.3f} %), routes {routes}")
            assert sent > SECONDS * 15 * 0.9, "the publisher kept its rate"
            assert missing / sent < 0.001
            assert len(routes) == 1, "one relay for the one track"

    asyncio.run(scenario())
