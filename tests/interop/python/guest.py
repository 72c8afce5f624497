"""A guest in somebody else's room: publishes, and reports once it sees and hears everybody named.

usage: guest.py URL ROOM IDENTITY OTHER…
prints one line of JSON and stays until it is stopped.
"""

import asyncio
import json
import sys

from media import Client, until


async def main(url, room, identity, *others):
    me = await Client(url, room, identity).connect()
    await me.publish_tone(523)
    await me.publish_counter()
    loud = {}

    def hears(other):
        loud[other] = loud.get(other, False) or any(pitch > 0 for pitch in me.pitches.get(other, []))
        return loud[other]

    await until(lambda: all(other in me.sizes for other in others), 60, "pictures of everybody")
    await until(lambda: all(hears(other) for other in others), 60, "sound of everybody")
    print(json.dumps({"sees": sorted(me.sizes), "hears": sorted(o for o in loud if loud[o])}), flush=True)
    await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
