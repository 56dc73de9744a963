// Figures follow the theme of the site: every call of Plotly.newPlot in a page goes through here.
(function () {
  var plot = Plotly.newPlot, drawn = [];
  // colours of the light page and what stands for them on the dark one
  var pairs = [["#333333", "#d5dbe1"], ["#555555", "#b6bfc8"], ["#888888", "#98a2ac"], ["#999999", "#8d97a1"], ["#bbbbbb", "#5a636d"],
    ["#c4c4c4", "#4d555e"], ["#eeeeee", "#343a41"], ["#0072b2", "#4aa8e0"], ["#d55e00", "#f58442"]];
  var maps = { dark: {}, light: {} };
  pairs.forEach(function (pair) { maps.dark[pair[0]] = pair[1]; maps.light[pair[1]] = pair[0]; });

  function theme() { return document.documentElement.dataset.theme === "dark" ? "dark" : "light"; }
  function recoloured(value, map) {
    if (typeof value === "string") return value[0] === "#" && map[value.toLowerCase()] || value;
    if (ArrayBuffer.isView(value) || !value || typeof value !== "object") return value;
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map(function (item) { return recoloured(item, map); });
    var copy = {};
    Object.keys(value).forEach(function (key) { copy[key] = key === "args" ? value[key] : recoloured(value[key], map); });
    return copy;
  }
  function dressed(layout, kind) {
    var dark = kind === "dark", line = dark ? "#343a41" : "#e3e6ea", text = dark ? "#d5dbe1" : "#333333", ground = dark ? "#262c33" : "#ffffff";
    layout = recoloured(layout || {}, maps[kind]);
    Object.assign(layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true, font: Object.assign({}, layout.font, { color: text }) });
    delete layout.width;
    Object.keys(layout).concat(["xaxis", "yaxis"]).forEach(function (key) { if (/^[xy]axis\d*$/.test(key)) layout[key] = Object.assign({}, layout[key], { gridcolor: line, zerolinecolor: line }); });
    (layout.updatemenus || []).forEach(function (menu) { Object.assign(menu, { bgcolor: ground, bordercolor: dark ? "#5a636d" : "#bbbbbb", font: Object.assign({}, menu.font, { color: text }) }); });
    (layout.sliders || []).forEach(function (slider) { Object.assign(slider, { bgcolor: ground, activebgcolor: dark ? "#5a636d" : "#dbdde0", bordercolor: dark ? "#5a636d" : "#bbbbbb" }); });
    layout.hoverlabel = Object.assign({}, layout.hoverlabel, { bgcolor: ground, font: { color: text } });
    return layout;
  }
  Plotly.newPlot = function (spot, data, layout, config) {
    var kind = theme();
    if (data && !Array.isArray(data)) { config = data.config; layout = data.layout; data = data.data; }
    spot = typeof spot === "string" ? document.getElementById(spot) : spot;
    drawn.push(spot);
    return plot.call(Plotly, spot, recoloured(data, maps[kind]), dressed(layout, kind), Object.assign({ responsive: true, displaylogo: false }, config));
  };
  new MutationObserver(function () {
    var kind = theme();
    drawn.forEach(function (spot) { if (spot.data) Plotly.react(spot, recoloured(spot.data, maps[kind]), dressed(spot.layout, kind)); });
  }).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });

  // figures that a notebook keeps as data only
  document.addEventListener("DOMContentLoaded", function () {
    document.querySelectorAll(".plotly-figure > script[type='application/json']").forEach(function (script) {
      var figure = JSON.parse(script.textContent), spot = script.parentNode.appendChild(document.createElement("div"));
      spot.style.height = ((figure.layout || {}).height || 450) + "px";
      Plotly.newPlot(spot, figure.data, figure.layout, figure.config).then(function () { if (figure.frames) Plotly.addFrames(spot, figure.frames); });
    });
  });
})();
