// The pictures that runs produced.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Pictures, picturesIn, viewPath } from "../../web/js/server.js";

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
