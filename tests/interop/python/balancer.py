"""What stands in front of nodes: a TCP load balancer that asks for their health."""

import asyncio
import contextlib

HEALTH = b"GET / HTTP/1.0\r\n\r\n"


class Balancer:
    """Leads a connection to the healthy node with the fewest."""

    def __init__(self, ports):
        self.open = dict.fromkeys(ports, 0)
        self.server = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def start(self):
        self.server = await asyncio.start_server(self.splice, "127.0.0.1", 0)

    def add(self, port):
        self.open[port] = 0

    @staticmethod
    async def is_healthy(port):
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(HEALTH)
                answer = await reader.readline()
                writer.close()
                return b" 200" in answer
        return False

    async def splice(self, reader, writer):
        for port in sorted(self.open, key=self.open.get):
            if await self.is_healthy(port):
                break
        else:
            writer.close()
            return
        self.open[port] += 1
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(self.copy(reader, back_writer), self.copy(back_reader, writer))
        except OSError:
            writer.close()
        finally:
            self.open[port] -= 1

    @staticmethod
    async def copy(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
