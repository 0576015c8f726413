// Draws the charts of the page from what is packed into it. Without scripts, everything else can still be read.
(async () => {
  "use strict";
  const element = (id) => document.getElementById(id);

  async function unpacked(id) {
    const text = atob(element(id).textContent);
    const packed = new Uint8Array(text.length);
    for (let index = 0; index < text.length; index++) packed[index] = text.charCodeAt(index);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // The bytes of each number lie apart: all first bytes, then all second ones, and so on.
  function numbersOf(planes, size) {
    const bytes = new Uint8Array(4 * size);
    for (let plane = 0; plane < 4; plane++)
      for (let index = 0; index < size; index++) bytes[4 * index + plane] = planes[plane * size + index];
    return new Float32Array(bytes.buffer);
  }

  const shown = (value) => (Number.isFinite(value) ? Number(value.toPrecision(4)).toString() : String(value));

  // The grids of one run: what one picks with the controls, or points at, is drawn and told.
  function drawGrids(run, data, numbers, figures) {
    const at = (name) => element(`${name}-${run}`);
    const model = (name) => figures.map((each) => each.get_model_by_name(name)).find((each) => each !== null);
    const [select, slider] = [at("statistic"), at("step")];
    const [numSteps, numSites] = [data.steps.length, data.sites.length];
    const [layers, heads, states] = ["layers", "heads", "states"].map((name) => model(`${name} source`));
    const array = (name) => {
      const place = data.places[name];
      return place && { shape: place.shape, at: (begin, end) => numbers.subarray(place.start + begin, place.start + end) };
    };
    const fill = (source, values) => {
      source.data.image[0].set(values);
      source.change.emit();
    };
    const nearest = (step) =>
      data.shown.reduce((best, index) => (Math.abs(index - step) < Math.abs(best - step) ? index : best), data.shown[0]);
    let statistic, ofLayers, ofHeads;

    function showStep() {
      const step = Number(slider.value);
      const place = data.shown.indexOf(nearest(step));
      at("at").textContent = `step ${data.steps[step].toLocaleString("en")}`;
      model("position").location = step;
      const image = heads.data.image[0];
      const blank = new Float32Array(image.length).fill(NaN);
      fill(heads, ofHeads ? ofHeads.at(place * image.length, (place + 1) * image.length) : blank);
      fill(states, ofHeads ? array("states").at(place * image.length, (place + 1) * image.length) : blank.fill(0));
      const otherStep = data.steps[data.shown[place]].toLocaleString("en");
      model("heads").title.text = ofHeads ? `heads at step ${otherStep}` : "one number for each layer";
    }

    function showStatistic() {
      statistic = data.statistics.find((each) => each.name === select.value);
      [ofLayers, ofHeads] = [array(`layers/${statistic.name}`), array(`heads/${statistic.name}`)];
      for (const name of ["layer colours", "head colours"])
        model(name).setv({ low: statistic.low, high: statistic.high });
      model("layers").title.text = statistic.title;
      at("summary").textContent = `${statistic.summary[0].toUpperCase()}${statistic.summary.slice(1)}.`;
      const values = ofLayers.at(0, numSteps * numSites);
      const image = new Float32Array(values.length);
      for (let step = 0; step < numSteps; step++)
        for (let site = 0; site < numSites; site++) image[site * numSteps + step] = values[step * numSites + site];
      fill(layers, image);
      showStep();
    }

    const inside = (x, y, width) => x >= 0 && x < width && y >= 0 && y < numSites;
    const tell = (text) => (at("value").textContent = text);

    model("layers").on_event("mousemove", (event) => {
      const [step, site] = [Math.round(event.x), Math.round(event.y)];
      if (!inside(step, site, numSteps)) return tell("");
      const value = ofLayers.at(step * numSites + site, step * numSites + site + 1)[0];
      const what = Number.isNaN(value) ? "not observed" : `${statistic.title} ${shown(value)}`;
      tell(`step ${data.steps[step].toLocaleString("en")} · ${data.sites[site]} · ${what}`);
    });
    model("layers").on_event("tap", (event) => {
      slider.value = Math.min(Math.max(Math.round(event.x), 0), numSteps - 1);
      showStep();
    });
    model("heads").on_event("mousemove", (event) => {
      const [head, site] = [Math.round(event.x), Math.round(event.y)];
      const width = heads.data.image[0].length / numSites;
      if (!ofHeads || !inside(head, site, width)) return tell("");
      const value = heads.data.image[0][site * width + head];
      const state = ["no such head", "", "not observed", "removed"][states.data.image[0][site * width + head]];
      tell(`${data.sites[site]} · head ${head} · ${state || `${statistic.title} ${shown(value)}`}`);
    });
    select.addEventListener("change", showStatistic);
    slider.addEventListener("input", showStep);
    showStatistic();
  }

  // A click on a mark of the timeline leads to its evidence.
  function linkMarks(figures) {
    const marks = figures.get_model_by_name("events marks");
    marks?.selected.properties.indices.change.connect(() => {
      const [index] = marks.selected.indices;
      const evidence = index === undefined ? null : element(marks.data.anchor[index]);
      evidence?.scrollIntoView({ behavior: "smooth" });
      evidence?.focus({ preventScroll: true });
    });
  }

  // The first screen is painted before the charts below it are drawn. A hidden page has no frames to wait for.
  async function paintFirstScreen() {
    const frame = () => new Promise(requestAnimationFrame);
    await Promise.race([frame().then(frame), new Promise((resolve) => setTimeout(resolve, 250))]);
    document.documentElement.dataset.firstScreen = "yes";
  }

  addEventListener("beforeprint", () => {
    for (const each of document.querySelectorAll("details")) each.open = true;
  });

  const script = document.createElement("script");
  script.textContent = new TextDecoder().decode(await unpacked("packed-bokeh"));
  document.head.append(script);
  const page = JSON.parse(new TextDecoder().decode(await unpacked("packed-data")));
  const drawn = {};
  for (const item of page.items) {
    await Bokeh.embed.embed_item(item, item.target_id);
    drawn[item.target_id] = Bokeh.documents.at(-1);
    if (item.target_id === "timeline") await paintFirstScreen();
  }
  linkMarks(drawn.timeline);
  for (const [run, data] of page.runs.entries()) {
    if (!(`layers-${run}` in drawn)) continue;
    const numbers = numbersOf(await unpacked(`packed-arrays-${run}`), data.size);
    drawGrids(run, data, numbers, [drawn[`layers-${run}`], drawn[`heads-${run}`]]);
  }
  document.documentElement.dataset.ready = "yes";
})().catch((error) => {
  const note = document.createElement("p");
  note.textContent = `The charts could not be drawn: ${error}`;
  document.getElementById("timeline").append(note);
  throw error;
});
