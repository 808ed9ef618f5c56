"""Who is told: which events are news, and messages to servers that misbehave."""

from __future__ import annotations

import pytest
from webhook import MODES, SECRET, serving

from nanogpt_cli.errors import UserError
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run import addresses, events, news, notify, post


def alarm(kind: str, time: float, **values: object) -> events.Alarm:
    said = {"step": int(time), "severity": "warning", "message": f"{kind}: look"}
    return events.Alarm(kind=kind, time=time, **{**said, **values})  # type: ignore[arg-type]


def test_the_end_incidents_and_raised_alarms_are_news() -> None:
    told = news.News("small")
    assert told(events.RunStarted(name="small")) == ""
    assert told(events.Note(message="hello")) == ""
    assert told(alarm("stuck", 5.0)) == "small: step 5: warning: stuck: look"
    assert told(alarm("slow", 6.0, active=False)) == ""
    assert told(alarm("dead_units", 6.0, severity="info")) == ""
    spike = events.Incident(step=7, kind="loss_spike", message="loss 9.1", time=7.0)
    assert told(spike) == "small: step 7: loss 9.1"
    end = events.RunEnded(step=9, reason="finished", best_val_loss=1.5)
    assert told(end) == "small: finished after 9 steps, best val loss 1.5000"
    crash = events.RunEnded(step=9, reason="error", message="Traceback …\n  x\nOSError: full\n")
    assert told(crash) == "small: failed after 9 steps: OSError: full"


def test_a_storm_of_alarms_is_no_storm_of_messages() -> None:
    told = news.News("small")
    storm = [alarm(f"kind{n % 9}", 1000.0 + n) for n in range(1500)]
    texts = [text for text in map(told, storm) if text]
    assert len(texts) == news.MOST
    assert "stand in the log only" in texts[-1]
    assert "stand in the log only" not in texts[0]
    assert told(alarm("kind0", 1000.0 + news.AGAIN_S + 1)), "after half an hour it is news again"
    assert told(events.RunEnded(step=3, reason="finished")), "the end always is"


def test_text_from_outside_cannot_end_a_sequence_or_call_a_channel() -> None:
    told = news.News("a\x1b\\b\a<!channel>")
    text = told(events.RunEnded(step=1, reason="error", message="x\x1b]9;evil\a"))
    assert text.isprintable()
    with serving() as hook:
        assert post.post(hook.address, text) == ""
    assert "‹!channel›" in hook.texts[0]
    assert "<" not in hook.texts[0]


def test_a_terminal_gets_bel_or_osc_9(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMUX", raising=False)
    assert news.sequence("bell", "x") == "\a"
    assert news.sequence("osc9", "small: done") == "\x1b]9;nanogpt: small: done\a"
    assert news.sequence("off", "x") == ""
    monkeypatch.setenv("TMUX", "/tmp/socket,1,0")
    assert news.sequence("osc9", "x") == "\x1bPtmux;\x1b\x1b]9;nanogpt: x\a\x1b\\"
    assert news.bell_of({"log": {"bell": "osc9"}}) == "osc9"
    for odd in ({}, {"log": 3}, {"log": {"bell": "gong"}}, {"log": {"bell": ["bell"]}}):
        assert news.bell_of(odd) == "off"


def test_one_message_is_json_that_slack_and_ntfy_take() -> None:
    with serving() as hook:
        assert post.post(hook.address, "small: done") == ""
    assert hook.got == [{"text": "small: done"}]
    (headers,) = hook.headers
    assert headers["content-type"] == "application/json"
    # What makes ntfy take the text out of the JSON, see its documentation.
    assert (headers["x-template"], headers["x-message"]) == ("yes", "{{.text}}")


@pytest.mark.parametrize("mode", MODES)
def test_what_went_wrong_is_said_without_the_address(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "TIMEOUT_S", 0.3 if mode == "silent" else 60.0)
    with serving(mode) as hook:
        problem = post.post(hook.address, "hello")
    assert problem
    assert "S3CRET" not in problem
    assert "services" not in problem
    assert len(hook.got) == (0 if mode == "down" else 1), "redirects are not followed"


def test_a_slow_server_costs_messages_and_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "LAST_S", 0.01)
    failed: list[str] = []
    with serving("silent") as hook, notify.opened(hook.address, "small", failed.append) as take:
        for n in range(50):
            take(events.RunEnded(step=n, reason="finished"))
    assert len(failed) == 1
    assert failed[0].startswith("notifying http://127.0.0.1:")
    assert SECRET not in failed[0]


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("ntfy.sh/mine", "https://HOST/PATH is expected"),
        ("ftp://ntfy.sh/mine", "https://HOST/PATH is expected"),
        ("https:///mine", "https://HOST/PATH is expected"),
        ("http://ntfy.sh/mine", "http:// is for this computer alone"),
        ("https://me:s3cret@ntfy.sh/mine", "ntfy takes ?auth="),
        ("https://ntfy.sh:port/s3cret", "not a URL"),
        ("https://[ntfy/s3cret", "not a URL"),
        ("https://ntfy.sh/s3cret\nHost: x", "no spaces"),
        ("https://ntfy.sh/s3cret ü", "no spaces"),
        ("https://ntfy.sh/" + "s3cret" * 400, "at most 2000"),
    ],
)
def test_what_is_no_address_is_refused_without_showing_it(
    address: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError) as raised:
        recipe_files.from_values({"log": {"notify": address}})
    assert "log.notify: " in str(raised.value)
    assert problem in str(raised.value)
    assert "s3cret" not in str(raised.value)
    with pytest.raises(UserError) as raised:
        recipe_files.from_values({"log": {"notify": [address]}})
    assert "log.notify = …: input should be a valid string" in str(raised.value)
    monkeypatch.setenv("NANOGPT_NOTIFY", address)
    with pytest.raises(UserError, match="NANOGPT_NOTIFY in the environment: ") as raised:
        addresses.address("")
    assert "s3cret" not in str(raised.value)


def test_a_recipe_shows_and_records_the_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "https://hooks.example.com:8443/services/s3cret?auth=s3cret"
    recipe = recipe_files.from_values({"log": {"notify": address}})
    assert addresses.address(recipe.log.notify) == address
    shown = "https://hooks.example.com:8443/…"
    assert recipe.model_dump(mode="json")["log"]["notify"] == shown
    assert "s3cret" not in recipe_files.to_toml(recipe) + repr(recipe)
    again = recipe_files.from_values(recipe.model_dump(mode="json"))
    assert addresses.address(again.log.notify) == "", "the host alone is nowhere to send to"
    monkeypatch.setenv("NANOGPT_NOTIFY", "http://localhost:1/x")
    assert addresses.address(again.log.notify) == "http://localhost:1/x"
    assert addresses.address(address) == address, "what the recipe says comes first"
