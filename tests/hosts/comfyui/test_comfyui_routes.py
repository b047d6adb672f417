"""What the page gets over HTTP, on a bare server: reports, maps, known prompts, and the memory's settings."""

import asyncio
import base64
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import comfy.latent_formats
import folder_paths
import latent_preview
import numpy as np
import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

from memguard_pack.memguard.hosts.comfyui import callers, graph, known, maps, routes, screen
from memguard_pack.memguard.hosts.comfyui.kept import KeptMaps
from memguard_pack.memguard.hosts.comfyui.latents import KEPT_MAPS, store
from memguard_pack.memguard.records import Finding, Report
from memguard_pack.memguard.troubles import UNFORESEEN

PROMPT, CHECKPOINT = "Halley breakfast at noon", "bed.safetensors"
FLAGGED = Report(
    run="r",
    model="00000000cafe0001",
    prompt=PROMPT,
    seeds=(7,),
    findings=(Finding("text_noise_norm", (2.5,), (0.08,), percentile=99.9, verdict="memorized"),),
    created="2026-01-02T03:04:05+00:00",
)


class Queue:
    """ComfyUI's queue with one running item of five (0.3.64) or six (0.8.0) parts."""

    def __init__(self, nodes, extra, parts):
        self.item = (0, "p", nodes, extra, [], {})[:parts]

    def get_current_queue_volatile(self):
        return [self.item], []


@pytest.fixture
def served(monkeypatch):
    """A function that makes a server with a running graph; no ComfyUI server runs in this process."""

    def serve(nodes=None, extra=None, parts=6):
        sent = []
        instance = SimpleNamespace(
            routes=web.RouteTableDef(),
            prompt_queue=Queue(nodes or {}, {} if extra is None else extra, parts),
            client_id="c",
            send_progress_text=lambda *args: None,
            send_sync=lambda event, payload, client: sent.append(payload),
            sent=sent,
        )
        monkeypatch.setattr(screen, "server", lambda: instance)
        monkeypatch.setattr(screen, "place", lambda: ("p", "6"))
        routes.register()
        return instance

    return serve


@pytest.fixture
def ask(served):
    """A function that asks the server: ask("GET", "/memory") -> status, answer."""
    instance = served()

    def question(method, path, body=None, **headers):
        async def go():
            app = web.Application()
            app.add_routes(instance.routes)
            async with TestClient(TestServer(app)) as client:
                data = body if isinstance(body, bytes | None) else json.dumps(body)
                given = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
                async with client.request(method, routes.BASE + path, data=data, headers=given) as reply:
                    return reply.status, await reply.json()

        return asyncio.run(go())

    return question


# --- known prompts -------------------------------------------------------------------------------------------------


def test_a_remembered_prompt_is_flagged_and_forgotten_when_cleared(ask, tmp_path):
    assert ask("GET", "/memory") == (200, {"enabled": True, "status": "ok", "runs": 0, "bytes": 0})
    assert known.remember(FLAGGED, CHECKPOINT) is None
    question = {"texts": ["a kettle", "(halley:1.2) breakfast at noon"], "checkpoints": [CHECKPOINT]}
    warning = {"kind": "prompt", "words": [], "verdict": "memorized", "score": 2.5, "percentile": 99.9, "seed": 7}
    warning |= {"checkpoint": CHECKPOINT, "created": "2026-01-02T03:04:05+00:00"}
    assert ask("POST", "/known", question) == (200, {"status": "ok", "warnings": [None, warning]})
    assert ask("POST", "/known", {"texts": [PROMPT]})[1]["warnings"] == [warning]
    facts = ask("GET", "/memory")[1]
    assert facts["runs"] == 1 and facts["bytes"] == (tmp_path / "user/memguard/prompts.sqlite3").stat().st_size
    assert ask("DELETE", "/memory")[1]["runs"] == 0
    assert ask("POST", "/known", question) == (200, {"status": "ok", "warnings": [None, None]})


def test_switched_off_it_remembers_nothing(ask):
    assert ask("POST", "/memory", {"enabled": False})[1]["enabled"] is False
    assert known.remember(FLAGGED, CHECKPOINT) is None
    assert ask("GET", "/memory")[1]["runs"] == 0
    assert ask("POST", "/memory", {"enabled": True})[1]["enabled"] is True
    known.remember(FLAGGED, CHECKPOINT)
    assert ask("GET", "/memory")[1]["runs"] == 1


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/known", b"{", "the body is no JSON"),
        ("/known", b"\xff\xfe\xfd", "the body is no JSON"),
        ("/known", b"[" * 100_000, "the body is no JSON"),
        ("/known", [], "the body is no JSON object"),
        ("/known", {}, "texts is not a list of strings"),
        ("/known", {"texts": "one"}, "texts is not a list of strings"),
        ("/known", {"texts": ["a", 1]}, "texts is not a list of strings"),
        ("/known", {"texts": [], "checkpoints": None}, "checkpoints is not a list of strings"),
        ("/known", {"texts": ["a"] * 65}, "texts has 65 entries; send at most 64"),
        ("/known", {"texts": ["a" * 20_001]}, "an entry of texts has 20001 characters; send at most 20000"),
        ("/known", b" " * 5_120_001, "the question has 5120001 bytes; send at most 5120000"),
        ("/memory", {"enabled": 1}, "enabled is not true or false"),
        ("/memory", {}, "enabled is not true or false"),
    ],
)
def test_a_bad_question_gets_one_line(ask, path, body, error):
    status, said = ask("POST", path, body)
    assert status == 400 and said["error"].startswith(error) and "\n" not in said["error"]


def test_lone_surrogates_and_an_empty_list_are_no_errors(ask):
    known.remember(FLAGGED, CHECKPOINT)
    body = b'{"texts": ["\\ud800", ""], "checkpoints": ["\\udcff"]}'
    assert ask("POST", "/known", body) == (200, {"status": "ok", "warnings": [None, None]})
    assert ask("POST", "/known", {"texts": []}) == (200, {"status": "ok", "warnings": []})


def test_a_damaged_file_is_said_everywhere_and_stays(ask, tmp_path):
    path = tmp_path / "user/memguard/prompts.sqlite3"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"somebody's file" * 300)
    reason = f"{path} is damaged; rename or delete it, and a new one is begun"
    assert known.remember(FLAGGED, CHECKPOINT) == f"memory of known prompts is off: {reason}"
    assert ask("POST", "/known", {"texts": [PROMPT]})[1] == {"status": reason, "warnings": [None]}
    for method, body in (("GET", None), ("POST", {"enabled": False}), ("DELETE", None)):
        assert ask(method, "/memory", body)[1]["status"] == reason
    assert path.read_bytes() == b"somebody's file" * 300


def test_an_unforeseen_error_is_a_note_and_no_exception(monkeypatch):
    def broken(user):
        raise RuntimeError("the folder went away")

    monkeypatch.setattr(known, "memory", broken)
    assert known.remember(FLAGGED, "") == f"memory of known prompts is off: {UNFORESEEN}"


def test_a_note_is_shown_again_with_the_report(served, tmp_path):
    instance = served()
    assert known.noted(FLAGGED, "5") is FLAGGED and instance.sent == []
    (tmp_path / "user/memguard/prompts.sqlite3").write_bytes(b"somebody's file" * 300)
    (note,) = known.noted(FLAGGED, "5").notes
    assert note.startswith("memory of known prompts is off: ")
    assert [(row["home"], row["report"]["notes"]) for row in instance.sent] == [("5", [note])]


def test_the_file_lies_below_the_user_folder_but_in_no_user_s(tmp_path):
    known.remember(FLAGGED, CHECKPOINT)
    assert [p.name for p in (tmp_path / "user/memguard").iterdir()] == ["prompts.sqlite3"]
    assert folder_paths.get_user_directory() == str(tmp_path / "user")


# --- the checkpoint's file -----------------------------------------------------------------------------------------


def nodes(**wanted):
    return {key: {"class_type": "x", "inputs": inputs} for key, inputs in wanted.items()}


LOADER = {"ckpt_name": "folder/bed.safetensors"}
GRAPHS = {
    "a sampler": nodes(s={"model": ["1", 0]}, **{"1": LOADER}),
    "LoRA and guard between": nodes(
        s={"positive": ["9", 0], "model": ["3", 0]},
        **{
            "9": {"ckpt_name": "other"},
            "3": {"model": ["2", 0]},
            "2": {"model": ["1", 0], "lora_name": "l"},
            "1": LOADER,
        },
    ),
    "a guider": nodes(s={"guider": ["2", 0], "noise": ["8", 0]}, **{"2": {"model": ["1", 0]}, "1": LOADER}),
    "the first of a merge": nodes(
        s={"model": ["2", 0]},
        **{"2": {"model1": ["1", 0], "model2": ["3", 0]}, "1": LOADER, "3": {"ckpt_name": "other"}},
    ),
    "a switch": nodes(s={"model": ["2", 0]}, **{"2": {"select": 1, "input1": ["1", 0]}, "1": LOADER}),
    "a pipe": nodes(
        s={"basic_pipe": ["2", 0], "upscale_model": ["3", 0]},
        **{"2": {"clip": ["3", 1], "model": ["1", 0]}, "1": LOADER, "3": {"model_name": "4x.pth"}},
    ),
    "a widget fed by a primitive": nodes(
        s={"model": ["1", 0]}, **{"1": {"unet_name": ["2", 0]}, "2": {"value": "folder/bed.safetensors"}}
    ),
    "a node in a subgraph": nodes(s={"model": ["7:1", 0]}, **{"7:1": LOADER}),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_the_checkpoint_is_found_upstream(kind):
    assert graph.checkpoint(GRAPHS[kind], "s") == "folder/bed.safetensors"


def test_no_checkpoint_no_name():
    assert graph.checkpoint({}, "s") is None
    assert graph.checkpoint({}, None) is None
    assert graph.checkpoint(nodes(s={"model": ["t", 0]}, t={"model": ["s", 0]}), "s") is None
    assert graph.checkpoint(nodes(s={"model": ["1", 0]}, **{"1": {"ckpt_name": 3, "model": 1.0}}), "s") is None


# --- who asks ------------------------------------------------------------------------------------------------------

ALL = [(method, path.replace("{run}", "r")) for method, path, _ in routes.HANDLERS]
BODIES = {"/known": {"texts": ["a"]}, "/memory": {"enabled": True}}
FOREIGN = [
    {"Sec_Fetch_Site": "cross-site"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
]
OWN = [
    {},
    {"Sec_Fetch_Site": "same-origin", "Origin": "https://behind.a.proxy"},
    {"Origin": "https://behind.a.proxy", "X_Forwarded_Host": "behind.a.proxy"},
    {"Origin": "http://here:8188", "Host": "here:8188"},
]


@pytest.mark.parametrize(("method", "path"), ALL)
@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_pages_of_other_sites_get_nothing(ask, method, path, headers):
    known.remember(FLAGGED, CHECKPOINT)
    body = BODIES.get(path) if method == "POST" else None
    assert ask(method, path, body, **headers) == (403, {"error": "this question comes from a page of another site"})
    assert ask("GET", "/memory")[1]["runs"] == 1


@pytest.mark.parametrize(("method", "path"), ALL)
@pytest.mark.parametrize("headers", OWN, ids=str)
def test_the_own_page_is_answered_also_behind_a_proxy(ask, method, path, headers):
    status, _ = ask(method, path, BODIES.get(path) if method == "POST" else None, **headers)
    assert status == (404 if "maps" in path else 200)


def test_other_sites_that_the_owner_has_let_in_are_answered(ask, monkeypatch):
    monkeypatch.setattr(callers.args, "enable_cors_header", "*")
    assert ask("GET", "/memory", Origin="http://friend.example")[0] == 200


@pytest.mark.parametrize("path", ["/known", "/memory"])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_body_that_a_form_could_send_is_refused(ask, path, kind):
    status, said = ask("POST", path, BODIES[path], Content_Type=kind)
    assert status == 415 and said == {"error": "send the question with Content-Type: application/json"}


def test_a_body_of_no_told_length_ends_at_the_limit():
    read = []

    async def parts():
        for _ in range(200):
            read.append(1)
            yield b" " * 100_000

    request = SimpleNamespace(content_length=None, content=SimpleNamespace(iter_any=parts))
    with pytest.raises(callers.Refusal, match="the question is longer than 5120000 bytes"):
        asyncio.run(routes._asked(request))
    assert len(read) == 52


@pytest.fixture
def users(served, monkeypatch):
    """A server with several users."""
    instance = served()
    monkeypatch.setattr(callers.args, "multi_user", True)
    return instance


def test_each_user_has_a_memory_and_reports_of_their_own(users, tmp_path):
    instance = users
    handlers = []
    instance.add_on_prompt_handler = handlers.append

    class Users:
        @staticmethod
        def get_request_user_id(request):
            user = request.headers.get("comfy-user", "default")
            if user not in ("ann_1", "bob_2", ".."):
                raise KeyError(user)
            return user

    instance.user_manager = Users()

    async def go():
        async def prompt(request):
            asked = handlers[0](await request.json())
            extra = asked["extra_data"]
            instance.prompt_queue.item = (0, "p", {}, extra, [], {})
            screen.show(replace(FLAGGED, run=extra["client_id"]), "5")
            known.remember(FLAGGED, CHECKPOINT)
            store.keep_maps(extra["client_id"], KeptMaps((1, 1), {}, owner=screen.owner()))
            return web.json_response({})

        app = instance.app = web.Application()
        callers.register(instance)
        app.add_routes([*instance.routes, web.post("/prompt", prompt), web.post("/api/prompt", prompt)])

        async with TestClient(TestServer(app)) as client:

            async def say(method, path, user, body=None):
                headers = {"comfy-user": user} if user else {}
                async with client.request(method, path, json=body, headers=headers) as reply:
                    return reply.status, await reply.json()

            claims = {"extra_data": {"client_id": "by ann", callers.KEY: "bob_2"}}
            await say("POST", "/prompt", "ann_1", claims)
            await say("POST", "/api/prompt", "bob_2", {"extra_data": {"client_id": "by bob"}})
            await say("POST", "/prompt", None, {"extra_data": {"client_id": "by nobody"}})
            found = {}
            for user in ("ann_1", "bob_2", "..", None, "eve"):
                found[user] = await say("GET", routes.BASE + "/reports", user)
            for user, run in (("ann_1", "by ann"), ("bob_2", "by ann"), ("ann_1", "by nobody")):
                found[user, run] = (await say("GET", f"{routes.BASE}/maps/{run}", user))[0]
            await say("DELETE", routes.BASE + "/memory", "bob_2")
            found["rows"] = [
                (await say("GET", routes.BASE + "/memory", user))[1]["runs"] for user in ("ann_1", "bob_2")
            ]
            return found

    found = asyncio.run(go())
    assert [[row["report"]["run"] for row in found[user][1]["reports"]] for user in ("ann_1", "bob_2")] == [
        ["by ann"],
        ["by bob"],
    ]
    assert [found[user][0] for user in ("..", None, "eve")] == [403] * 3
    assert [found[key] for key in (("ann_1", "by ann"), ("bob_2", "by ann"), ("ann_1", "by nobody"))] == [200, 404, 404]
    assert found["rows"] == [1, 0]
    assert sorted(path.parent.name for path in (tmp_path / "user").rglob("*.sqlite3")) == ["ann_1", "bob_2"]


def test_what_has_no_client_is_not_told_to_all_users(users):
    users.client_id = None
    screen.show(FLAGGED)
    assert users.sent == [] and len(screen.payloads) == 1


# --- reports -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [5, 6])
def test_events_are_kept_with_their_workflow(served, parts):
    instance = served(extra={"extra_pnginfo": {"workflow": {"id": "w1", "nodes": []}}}, parts=parts)
    screen.show(FLAGGED, "5")
    assert instance.sent == list(screen.payloads)
    (payload,) = screen.payloads
    assert (payload["home"], payload["node_id"], payload["prompt_id"], payload["workflow"]) == ("5", "6", "p", "w1")
    assert payload["report"]["run"] == "r"


@pytest.mark.parametrize(
    "extra",
    [{}, {"extra_pnginfo": None}, {"extra_pnginfo": {"workflow": []}}, {"extra_pnginfo": {"workflow": {"id": 3}}}],
)
def test_a_run_without_workflow_id(served, extra):
    served(extra=extra)
    screen.show(FLAGGED)
    assert screen.payloads[0]["workflow"] is None


def test_the_last_reports_of_a_workflow_oldest_first(ask):
    for i in range(70):
        screen.payloads.append({"workflow": f"w{i % 2}", "report": {"run": str(i)}})
    found = ask("GET", "/reports?workflow=w1")[1]["reports"]
    assert [row["report"]["run"] for row in found] == [str(i) for i in range(7, 70, 2)]
    assert len(ask("GET", "/reports")[1]["reports"]) == 64
    assert ask("GET", "/reports?workflow=none") == (200, {"reports": []})


def test_routes_are_added_once_and_only_to_a_server(served, monkeypatch):
    instance = served()
    routes.register()
    assert sorted((route.method, route.path) for route in instance.routes) == [
        ("DELETE", "/memguard/v1/memory"),
        ("GET", "/memguard/v1/maps/{run}"),
        ("GET", "/memguard/v1/memory"),
        ("GET", "/memguard/v1/reports"),
        ("POST", "/memguard/v1/known"),
        ("POST", "/memguard/v1/memory"),
    ]
    monkeypatch.setattr(screen, "server", lambda: None)
    routes.register()


# --- maps ----------------------------------------------------------------------------------------------------------


def test_maps_come_as_bytes_with_their_range(ask):
    ramp = torch.tensor([[0.5, 1.0, 1.5], [2.0, 2.5, float("nan")]])
    even = torch.full((2, 3), 0.25)
    store.keep_maps("r", KeptMaps((2, 3), {"noise_gap": ramp[None], "word 12": even[None]}))
    status, found = ask("GET", "/maps/r")
    assert status == 200 and (found["run"], found["size"], found["preview"]) == ("r", [2, 3], None)
    first, second = found["maps"]
    assert (first["name"], first["span"], first["low"], first["high"]) == ("noise_gap", None, 0.0, 2.5)
    assert list(base64.b64decode(first["data"])) == [51, 102, 153, 204, 255, 0]
    assert (second["name"], second["span"], second["low"], second["high"]) == ("word 12", 12, 0.25, 0.25)
    assert base64.b64decode(second["data"]) == bytes(6)
    assert ask("GET", "/maps/other") == (404, {"error": "no maps of this run are kept on this server"})


def test_the_maps_of_the_last_runs_are_kept_small():
    picture = torch.zeros(2, 4, 64, 64, requires_grad=True)
    for i in range(KEPT_MAPS + 1):
        store.keep_maps(str(i), KeptMaps((64, 64), {"noise_gap": torch.rand(2, 64, 64)}, picture))
    assert KEPT_MAPS == 32 and store.maps_of("0") is None
    kept = store.maps_of("32")
    assert (kept.maps["noise_gap"].dtype, kept.latent.dtype) == (torch.uint8, torch.float16)
    assert kept.latent.shape == (1, 4, 64, 64) and not kept.latent.requires_grad


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"map 'word 0' has shape \[2, 2\], the run's maps are \[2, 3\]"):
        store.keep_maps("r", KeptMaps((2, 3), {"word 0": torch.zeros(1, 2, 2)}))


FORMATS = {"SD15": 4, "SDXL": 4, "SD3": 16, "Flux": 16, "Wan21": 16}


@pytest.mark.parametrize("name", FORMATS)
def test_the_preview_is_comfyui_s_own(name):
    made = getattr(comfy.latent_formats, name)()
    shape = (2, FORMATS[name], 3, 6, 5) if name == "Wan21" else (2, FORMATS[name], 6, 5)
    inner = torch.randn(shape, generator=torch.manual_seed(1)).half().float()
    returned = made.process_out(inner)  # what a sampler returns
    previewer = latent_preview.Latent2RGBPreviewer(made.latent_rgb_factors, made.latent_rgb_factors_bias)
    wanted = np.asarray(previewer.decode_latent_to_preview(inner))
    store.keep_maps("r", KeptMaps((6, 5), {}, returned, made))
    got = Image.open(io.BytesIO(base64.b64decode(maps.answer("r")["preview"])))
    assert got.format == "PNG" and got.size == (5, 6)
    # half precision may move a colour by one of 255
    assert np.abs(np.asarray(got).astype(int) - wanted.astype(int)).max() <= 1


def test_a_large_picture_has_a_small_preview():
    made = comfy.latent_formats.SD15()
    encoded = maps.preview(torch.randn(1, 4, 300, 600), made)
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (256, 128)


def test_a_format_without_colours_or_of_an_unknown_kind_has_no_preview():
    assert maps.preview(torch.zeros(1, 4, 8, 8), comfy.latent_formats.LatentFormat()) is None
    assert maps.preview(None, comfy.latent_formats.SD15()) is None
    assert maps.preview(torch.zeros(1, 9, 8, 8), comfy.latent_formats.SD15()) is None


@pytest.mark.parametrize(
    "between",
    [
        {"class_type": "Any Switch (rgthree)", "inputs": {"any_01": ["g", 0], "any_02": ["1", 0]}},
        {"class_type": "ImpactSwitch", "inputs": {"select": 2, "input1": ["1", 0], "input2": ["g", 0]}},
        {"class_type": "ComfySwitchNode", "inputs": {"switch": True, "on_false": ["1", 0], "on_true": ["g", 0]}},
        {"class_type": "ToBasicPipe", "inputs": {"model": ["g", 0], "clip": ["1", 1], "vae": ["1", 2]}},
        {"class_type": "ModelMergeSimple", "inputs": {"model1": ["g", 0], "model2": ["1", 0], "ratio": 0.5}},
        {"class_type": "Reroute", "inputs": {"": ["g", 0]}},
    ],
)
def test_the_guard_of_a_sampler_is_found_through_switches_pipes_and_merges(between):
    nodes = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
        "g": {"class_type": "MemGuard", "inputs": {"model": ["1", 0]}},
        "b": between,
        "f": {"class_type": "FromBasicPipe", "inputs": {"basic_pipe": ["b", 0]}},
        "s": {
            "class_type": "KSampler",
            "inputs": {"model": ["f", 0], "sampler_name": "euler", "latent_image": ["first", 0]},
        },
        "first": {"class_type": "KSampler", "inputs": {"model": ["g", 0]}},
    }
    assert graph.guard(nodes, "s") == "g" and graph.unguarded_after(nodes, "first") == []
    nodes["f"]["inputs"] = {"basic_pipe": ["1", 0]}
    assert graph.guard(nodes, "s") is None and graph.unguarded_after(nodes, "first") == ["s"]


@pytest.mark.parametrize(
    "between",
    [
        {"class_type": "ModelMergeSimple", "inputs": {"model2": ["g", 0], "model1": ["1", 0], "ratio": 0.5}},
        {"class_type": "ImpactSwitch", "inputs": {"select": 2, "input12": ["g", 0], "input2": ["1", 0]}},
        {"class_type": "ComfySwitchNode", "inputs": {"switch": False, "on_false": ["1", 0], "on_true": ["g", 0]}},
        {"class_type": "Context Big (rgthree)", "inputs": {"base_ctx": ["g", 0], "model": ["1", 0]}},
    ],
)
def test_a_guard_on_what_a_node_does_not_go_on_with_is_none(between):
    """A merge has no wrapper of its second model, as the real one in test_comfyui_passes shows."""
    nodes = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
        "g": {"class_type": "MemGuard", "inputs": {"model": ["1", 0]}},
        "b": between,
        "s": {
            "class_type": "KSampler",
            "inputs": {"model": ["b", 0], "sampler_name": "euler", "latent_image": ["first", 0]},
        },
        "first": {"class_type": "KSampler", "inputs": {"model": ["g", 0]}},
    }
    assert graph.guard(nodes, "s") is None and graph.unguarded_after(nodes, "first") == ["s"]
    assert graph.checkpoint(nodes, "s") == "a.safetensors"


def test_the_guard_of_a_sampler_is_found_however_many_nodes_are_between():
    nodes = {str(n): {"class_type": "LoraLoaderModelOnly", "inputs": {"model": [str(n + 1), 0]}} for n in range(60)}
    nodes["60"] = {"class_type": "MemGuard", "inputs": {"model": ["0", 0]}}
    assert graph.guard(nodes, "0") == "60"


def test_the_guard_of_a_sampler_is_found_through_model_nodes_and_guiders():
    nodes = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {}},
        "11:6": {"class_type": "MemGuard", "inputs": {"model": ["1", 0]}},
        "2": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["11:6", 0]}},
        "3": {"class_type": "KSampler", "inputs": {"model": ["2", 0]}},
        "4": {"class_type": "CFGGuider", "inputs": {"model": ["11:6", 0]}},
        "5": {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["4", 0]}},
        "6": {"class_type": "KSampler", "inputs": {"model": ["1", 0]}},
    }
    found = [graph.guard(nodes, number) for number in ("3", "5", "6", None, "absent")]
    assert found == ["11:6", "11:6", None, None, None]
