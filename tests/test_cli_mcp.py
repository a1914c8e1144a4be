"""`python -m pipeline mcp`, driven by the protocol's own client, in the process and as a program over its pipes."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.commands import mcp
from tests.fake_model import fake_engine, write_clip

mcp_library = pytest.importorskip("mcp", reason="the Model Context Protocol's library is not installed")


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("mcp") / "holiday.mp4")


@pytest.fixture
def tools(tmp_path):
    made = mcp.Tools(fake_engine(watch_s=0.01), 1.0, tmp_path)
    yield made
    made.close_all()


def talk(server, what):
    """Runs `what(call)` with a connected client; call(name, **arguments) gives the result, or raises its sentence."""

    async def connected():
        async with mcp_library.Client(server, read_timeout_seconds=60) as client:

            async def call(name: str, **given):
                result = await client.call_tool(name, given)
                if result.is_error:
                    raise UserWarning(result.content[0].text)
                found = result.structured_content
                return found["result"] if list(found) == ["result"] else found

            call.client = client
            await what(call)

    asyncio.run(connected())


async def watched(call, stream: int) -> dict:
    end = time.monotonic() + 60
    while (told := await call("status", stream=stream))["watching"] and time.monotonic() < end:
        await asyncio.sleep(0.05)
    return told


def test_every_tool_is_told_of_and_works(tools, video):
    async def what(call):
        listed = await call.client.list_tools()
        assert {tool.name for tool in listed.tools} == {
            "watch",
            "status",
            "ask",
            "events",
            "alert_when",
            "clip",
            "close",
        }
        assert all(tool.description for tool in listed.tools) and "MM:SS" in call.client.instructions
        number = (await call("watch", path=str(video)))["stream"]
        told = await watched(call, number)
        assert (told["name"], told["pictures"], told["error"]) == ("holiday.mp4", 12, "")
        answer = await call("ask", stream=number, question="What do you see?", at="0:04")
        assert answer["answer"] and answer["asked_at"] == "0:04" and answer["evidence"]
        shots = await call("events", stream=number, kind="shot")
        assert shots and all(event["kind"] == "shot" for event in shots)
        assert await call("events", stream=number, since="59:00") == []
        rule = await call("alert_when", stream=number, rule="a person enters")
        assert rule["says"] and (await call("status", stream=number))["rules"] == ["a person enters"]
        cut = await call("clip", stream=number, at="0:06", around=2)
        assert cut["pictures"] >= 10 and Path(cut["path"]).stat().st_size > 1000
        assert await call("close", stream=number) == {"closed": number}

    talk(mcp._server(tools), what)


@pytest.mark.parametrize(
    ("tool", "given", "told"),
    [
        ("status", {"stream": 7}, "no stream 7"),
        ("ask", {"stream": 1, "question": " "}, "question"),
        ("ask", {"stream": 1, "question": "What?", "at": "noon"}, "12:40"),
        ("events", {"stream": 1, "kind": "smell"}, "smell"),
        ("clip", {"stream": 1, "at": "50:00"}, "50:00"),
        ("watch", {"path": "http://127.0.0.1:9/x.mp4"}, "."),
        ("watch", {"path": "/no/such/file.mp4"}, "."),
        ("alert_when", {"stream": 1, "rule": " "}, "few words"),
    ],
)
def test_a_mistake_is_a_sentence_and_nothing_else_suffers(tools, video, tool, given, told):
    async def what(call):
        await call("watch", path=str(video))
        await watched(call, 1)
        with pytest.raises(UserWarning) as refused:
            await call(tool, **given)
        assert told in str(refused.value) and str(refused.value).rstrip().endswith(".")
        assert "Traceback" not in str(refused.value)
        assert (await call("status", stream=1))["pictures"] == 12

    talk(mcp._server(tools), what)


def test_asking_waits_for_no_end_and_closing_ends_the_watching(tmp_path, video):
    slow = mcp.Tools(fake_engine(watch_s=0.3), 1.0, tmp_path)

    async def what(call):
        await call("watch", path=str(video))
        while not (await call("status", stream=1))["pictures"]:
            await asyncio.sleep(0.02)
        told = await call("ask", stream=1, question="What do you see?")
        now = await call("status", stream=1)
        assert now["watching"] and told["frames"] < 12
        await call("close", stream=1)
        with pytest.raises(UserWarning, match="no stream 1"):
            await call("status", stream=1)

    talk(mcp._server(slow), what)


def test_streams_are_bounded_and_each_is_its_own(tools, video, monkeypatch):
    monkeypatch.setattr(mcp, "STREAMS", 2)

    async def what(call):
        numbers = [(await call("watch", path=str(video)))["stream"] for _ in range(2)]
        with pytest.raises(UserWarning, match="close one"):
            await call("watch", path=str(video))
        await call("alert_when", stream=numbers[0], rule="a dog enters")
        await call("close", stream=numbers[0])
        assert (await call("status", stream=numbers[1]))["rules"] == []
        assert (await call("watch", path=str(video)))["stream"] not in numbers

    talk(mcp._server(tools), what)


def test_without_the_library_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["mcp"]) == 2 and "requirements-mcp.txt" in capsys.readouterr().err


def test_as_a_program_over_its_pipes(video):
    """The model that ships, through a real process: its stdout is the protocol's alone."""
    started = mcp_library.StdioServerParameters(
        command=sys.executable, args=["-m", "pipeline", "mcp"], env=dict(os.environ), cwd=Path(__file__).parents[1]
    )

    async def what(call):
        await call("watch", path=str(video))
        told = await watched(call, 1)
        assert told["pictures"] == 12 and told["memory_bytes"] > 0
        assert (await call("ask", stream=1, question="How long is the video?"))["answer"]

    talk(started, what)
