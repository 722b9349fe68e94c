// Shapes that turn. The viewer's code and the shapes lie in the page as gzipped base64 and are unpacked when the first
// of them comes into view; a shape that has gone far out of view is given back, so that many do not fill the memory.
"use strict";
(() => {
  const frames = document.querySelectorAll(".viewer[data-model]");
  if (!frames.length) return;
  const DISTANCE = "3.9m"; // at which the unit sphere fills a field of view of 30 degrees
  const urls = new Map();
  const obstacle = !("DecompressionStream" in window)
    ? "this browser is too old to unpack shapes"
    : !document.createElement("canvas").getContext("webgl2") && "this browser draws no WebGL";
  let library = null;
  let turn = Promise.resolve();

  function unpacked(id) {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
  }

  function loadLibrary() {
    library ??= (async () => {
      const script = document.createElement("script");
      script.textContent = await unpacked("viewer").text();
      document.head.append(script);
      await customElements.whenDefined("model-viewer");
    })();
    return library;
  }

  async function urlOf(id) {
    if (!urls.has(id)) {
      const content = await unpacked(id).arrayBuffer();
      urls.set(id, URL.createObjectURL(new Blob([content], { type: "model/gltf-binary" })));
    }
    return urls.get(id);
  }

  // runs beside each other show the same side
  function turnOthers(viewer) {
    for (const other of viewer.closest("article").querySelectorAll("model-viewer")) {
      if (other === viewer) continue;
      other.cameraOrbit = viewer.getCameraOrbit().toString();
      other.cameraTarget = viewer.getCameraTarget().toString();
      other.fieldOfView = `${viewer.getFieldOfView()}deg`;
      other.jumpCameraToGoal();
    }
  }

  function start(viewer, frame) {
    const settings = {
      "camera-controls": "", "disable-zoom": "", "disable-tap": "", "interaction-prompt": "none",
      "touch-action": "pan-y", loading: "eager", "field-of-view": "30deg", "camera-target": "0m 0m 0m",
      "camera-orbit": `${frame.dataset.orbit} ${DISTANCE}`, "min-camera-orbit": "-Infinity 0deg 0.5m",
      "max-camera-orbit": "Infinity 180deg 12m", "min-field-of-view": "5deg", exposure: "1.2",
      "environment-image": "legacy", alt: frame.dataset.alt,
    };
    for (const [name, value] of Object.entries(settings)) viewer.setAttribute(name, value);
    viewer.addEventListener("camera-change", ({ detail }) => {
      if (detail.source === "user-interaction") turnOthers(viewer);
    });
    // the wheel scrolls the page until a shape has been clicked
    viewer.addEventListener("focus", () => viewer.removeAttribute("disable-zoom"));
    viewer.addEventListener("blur", () => viewer.setAttribute("disable-zoom", ""));
    return new Promise((resolve) => {
      viewer.addEventListener("load", () => {
        frame.dataset.state = "drawn";
        resolve();
      });
      viewer.addEventListener("error", () => {
        fail(frame, "this shape cannot be drawn here");
        resolve();
      });
      setTimeout(resolve, 5000);
    });
  }

  function fail(frame, words) {
    frame.dataset.state = "failed";
    frame.replaceChildren(words);
  }

  async function draw(frame) {
    if (frame.dataset.state !== "loading") return;
    await loadLibrary();
    const url = await urlOf(frame.dataset.model);
    if (frame.dataset.state !== "loading") return;
    const viewer = document.createElement("model-viewer");
    const drawn = start(viewer, frame);
    viewer.src = url;
    frame.replaceChildren(viewer);
    await drawn;
  }

  function enter(frame) {
    if (frame.dataset.state) return;
    if (obstacle) {
      fail(frame, `${obstacle}; the file is linked below`);
      return;
    }
    frame.dataset.state = "loading";
    frame.textContent = "unpacking";
    // one after the other, so that the page stays smooth
    turn = turn.then(() => draw(frame));
  }

  function leave(frame) {
    if (!["loading", "drawn"].includes(frame.dataset.state)) return;
    delete frame.dataset.state;
    frame.replaceChildren();
    if (urls.has(frame.dataset.model)) URL.revokeObjectURL(urls.get(frame.dataset.model));
    urls.delete(frame.dataset.model);
  }

  const near = new IntersectionObserver(
    (entries) => entries.filter((one) => one.isIntersecting).forEach((one) => enter(one.target)),
    { rootMargin: "150px" },
  );
  const far = new IntersectionObserver(
    (entries) => entries.filter((one) => !one.isIntersecting).forEach((one) => leave(one.target)),
    { rootMargin: "900px" },
  );
  frames.forEach((frame) => { near.observe(frame); far.observe(frame); });
})();
