// What the server is asked, what is said where it has no answer, and the pictures that runs produced.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Pictures, known, mapsOf, memory, picturesIn, viewPath } from "../../web/js/server.js";
import { api } from "./comfyui.mjs";

test("the pictures of a prompt come the newest first", () => {
  const store = new Pictures();
  store.add("p", { images: [{ filename: "a.png" }, { filename: "b.png", subfolder: "x", type: "temp" }] });
  store.add("p", { text: ["no picture"] });
  store.add("q", { images: [{ filename: "c.png" }] });
  store.add("p", { images: [{ filename: "d.png" }] });
  assert.equal(viewPath(store.of("p")[1]), "/view?filename=b.png&subfolder=x&type=temp");
  assert.deepEqual(store.of("p").map(({ filename }) => filename), ["d.png", "b.png", "a.png"]);
  assert.equal(store.of("q").length, 1);
  assert.deepEqual(store.of("r"), []);
});

test("pictures are found in the history of a prompt", () => {
  const outputs = { 8: { text: ["t"] }, 10: { images: [{ filename: "a.png", subfolder: "", type: "output" }] } };
  assert.equal(picturesIn(outputs)[0].filename, "a.png");
  assert.deepEqual(picturesIn(undefined), []);
});

test("maps that are gone are said to be gone, and an error is said as it is", async () => {
  api.fetchApi = async () => ({ status: 404 });
  await assert.rejects(mapsOf("r"), { message: /^The server no longer keeps the maps of this run/ });
  api.fetchApi = async () => ({ status: 500, json: async () => ({ error: "no room" }) });
  await assert.rejects(mapsOf("r"), { message: "No maps: no room" });
});

test("a server that is away has no memory and knows no prompt", async () => {
  api.fetchApi = async () => Promise.reject(new Error("away"));
  assert.deepEqual(await known(["a cup"], []), []);
  assert.equal((await memory()).status, "the server gave no answer");
});

test("the memory is switched by asking for it", async () => {
  const asked = [];
  api.fetchApi = async (path, { method, body }) => {
    asked.push([path, method, body]);
    return { status: 200, json: async () => ({ status: "ok" }) };
  };
  await memory();
  await memory(false);
  assert.deepEqual(asked, [
    ["/memguard/v1/memory", "GET", undefined],
    ["/memguard/v1/memory", "POST", '{"enabled":false}'],
  ]);
});
