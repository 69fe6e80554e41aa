"""Count what SuperNodes send and receive, outside of Flower: a pipe between them and the SuperLink.

Run: python count_bytes.py LISTEN_PORT SUPERLINK_PORT FILE; FILE then holds "bytes up, bytes down", once a second.
"""

import asyncio
import sys
from pathlib import Path

LISTEN, TO, FILE = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
counted = {"up": 0, "down": 0}


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
    """Pass bytes on and count them."""
    try:
        while data := await reader.read(1 << 16):
            counted[way] += len(data)
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Connect a SuperNode to the SuperLink."""
    try:
        back, forth = await asyncio.open_connection("127.0.0.1", TO)
    except ConnectionError:  # the SuperLink has stopped
        writer.close()
        return
    await asyncio.gather(pump(reader, forth, "up"), pump(back, writer, "down"))


async def main() -> None:
    """Serve until killed."""
    await asyncio.start_server(connected, "127.0.0.1", LISTEN)
    while True:
        FILE.write_text(f"{counted['up']} {counted['down']}\n")
        await asyncio.sleep(1)


asyncio.run(main())
