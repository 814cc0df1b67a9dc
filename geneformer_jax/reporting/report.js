"use strict";
// Tables by DataTables, figures by Vega-Embed, and what joins them: rows chosen in one show in the
// other.
(() => {
  const DARK = matchMedia("(prefers-color-scheme: dark)");
  const MOST_RINGED = 50, SVG_POINTS = 2000, SHOWN_COLUMNS = 12, PRINTED_ROWS = 100;
  const MISSING = "n/a", SEARCH = { extend: "search", excludeLogic: ["empty", "notEmpty"] };
  const datasets = {}, tables = {}, figures = [];

  const content = element => JSON.parse(element.textContent);
  const small = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
  const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const escape = text => text.replace(/[&<>"']/g, sign => `&#${sign.charCodeAt(0)};`);

  function readable(value, isWhole) {
    if (value === null) return "";
    const number = Number(value), size = Math.abs(number);
    if (!Number.isFinite(number)) return String(value).replace("Infinity", "inf");
    if (isWhole || size >= 1000) return whole.format(number);
    const tiny = size !== 0 && size < 1e-4;
    return tiny ? number.toExponential(3).replace(/\.?0*e/, "e") : small.format(number);
  }

  // A spreadsheet takes text that begins so for a formula; as in common/tables.py.
  const FORMULA = /^'*(?![+-]?\d+\.?\d*(?:e[+-]?\d+)?$)[=+\-@\t\r]/i;
  const harmless = text => (FORMULA.test(text) ? `'${text}` : text);

  function asColumn(column) {
    if (!column.number) {
      return {
        title: escape(column.words), name: column.name, type: "string",
        render: (value, kind) =>
          kind === "display" ? escape(value) : kind === "export" ? harmless(value) : value,
      };
    }
    return {
      title: escape(column.words), name: column.name, type: "num-known", className: "number",
      render: (value, kind) => {
        if (kind === "display") return readable(value, column.whole);
        // Filters take what is empty for less than anything, and 0 for empty.
        if (kind === "filter") return value === null ? MISSING : String(value);
        return kind === "sort" ? (value === null ? NaN : Number(value)) : value ?? "";
      },
    };
  }

  // Missing numbers come last, whichever way a column is sorted.
  const known = compare => (a, b) =>
    Number.isNaN(a) || Number.isNaN(b) ? Number.isNaN(a) - Number.isNaN(b) : compare(a, b);
  DataTable.type("num-known", {
    order: { asc: known((a, b) => a - b), desc: known((a, b) => b - a) },
  });

  function makeTable(figure) {
    const data = content(figure.querySelector("script"));
    const long = data.rows.length > 10, paged = data.rows.length > 25;
    const wide = data.columns.length > SHOWN_COLUMNS;
    const element = figure.querySelector("table");
    const table = new DataTable(element, {
      data: data.rows,
      columns: data.columns.map(asColumn),
      order: [],
      orderMulti: true,
      deferRender: true,
      autoWidth: false,
      paging: paged,
      pageLength: 15,
      lengthMenu: [15, 50, 100, 500],
      info: long,
      searching: true,
      columnControl: long ? ["order", ["searchClear", SEARCH]] : ["order"],
      ordering: { indicators: false, handler: true },
      language: {
        search: "Search", info: "Rows _START_ to _END_ of _TOTAL_", infoFiltered: "(of _MAX_)",
        infoEmpty: "No rows", zeroRecords: "No row fits", lengthMenu: "_MENU_ rows a page",
      },
      layout: {
        topStart: long ? "search" : null,
        topEnd: {
          buttons: [...(wide ? [{ extend: "colvis", text: "Columns" }] : []), {
            extend: "csv", text: "Download CSV", filename: data.file, title: null, bom: false,
            exportOptions: {
              orthogonal: "export",
              format: {
                header: (words, index) => harmless(data.columns[index].name), body: value => value,
              },
            },
          }],
        },
        bottomStart: paged ? ["pageLength", "info"] : long ? "info" : null,
        bottomEnd: paged ? "paging" : null,
      },
      columnDefs: wide ? [{ targets: data.columns.map((_, i) => i).slice(SHOWN_COLUMNS),
        visible: false }] : [],
      createdRow: data.key < 0 ? undefined : row => { row.tabIndex = 0; },
    });
    data.columns.forEach((column, index) => {
      const heading = table.column(index).header();
      heading.title = column.meaning;
      // The heading would take the key for its own, and sort again.
      heading.querySelector(".dtcc")
        ?.addEventListener("keypress", event => event.stopPropagation());
      const does = { order: "Sort by", dropdown: "Filter" };
      for (const [kind, word] of Object.entries(does)) {
        heading.querySelector(`.dtcc-button_${kind}`)
          ?.setAttribute("aria-label", `${word} ${column.words}`);
      }
    });
    const scroll = document.createElement("div");
    scroll.className = "scroll";
    element.replaceWith(scroll);
    scroll.append(element);
    if (paged) printMore(table);
    if (data.key >= 0) tables[data.name] = join(table, data, element);
  }

  // Nobody turns pages on paper.
  function printMore(table) {
    let length;
    addEventListener("beforeprint", () => {
      length = table.page.len();
      table.page.len(PRINTED_ROWS).draw();
    });
    addEventListener("afterprint", () => table.page.len(length).draw());
  }

  // Rows picked or found in a table are ringed in its figures; rows chosen there are all it shows.
  function join(table, data, element) {
    const own = () => figures.filter(each => each.table === data.name && each.view);
    const ring = keys => own().forEach(each => each.view.signal("shown", keys).runAsync());
    const pick = event => {
      const row = event.target.closest("tbody tr");
      if (row && table.row(row).data()) ring([table.row(row).data()[data.key]]);
    };
    element.addEventListener("click", pick);
    element.addEventListener("keydown", event => event.key === "Enter" && pick(event));
    table.on("search.dt", () => {
      const found = table.rows({ search: "applied" });
      const few = found.count() <= MOST_RINGED && found.count() < data.rows.length;
      ring(few ? found.data().toArray().map(row => row[data.key]) : []);
    });
    return keys => {
      table.search.fixed("chosen", keys && ((text, row) => keys.has(row[data.key])));
      table.draw();
    };
  }

  function look() {
    const style = getComputedStyle(document.documentElement);
    const [ink, soft, line] = ["--ink", "--soft", "--line"].map(each => style.getPropertyValue(each));
    return {
      background: "transparent", font: "system-ui, sans-serif",
      axis: { labelColor: ink, titleColor: ink, tickColor: line, domainColor: soft, gridColor: line,
        gridOpacity: .5, labelFontSize: 12, titleFontSize: 13, titleFontWeight: 500,
        labelLimit: 220 },
      legend: { labelColor: ink, titleColor: ink, labelFontSize: 12, titleFontSize: 12,
        labelLimit: 220, symbolLimit: 80 },
      title: { color: ink }, header: { labelColor: ink, titleColor: ink },
      view: { stroke: "transparent" }, rule: { color: soft }, text: { color: ink, fontSize: 12 },
      point: { stroke: null },
    };
  }

  function fitted(spec, width, aria) {
    const legend = width < 620
      ? { orient: "bottom", columns: 1, labelLimit: width - 60,
          gradientDirection: "horizontal" } : {};
    const config = look();
    if (width < 620) config.axis.labelLimit = width / 3;
    return { ...spec, config: { ...config, aria, legend: { ...config.legend, ...legend } } };
  }

  async function draw(figure) {
    const { element, spec } = figure, live = element.querySelector(".live");
    for (const name of figure.datasets) (spec.datasets ??= {})[name] = datasets[name];
    // A description of each of many points would make every move slow.
    const few = Math.max(0, ...figure.datasets.map(name => datasets[name].length)) <= SVG_POINTS;
    const result = await vegaEmbed(live, fitted(spec, live.clientWidth || 600, few), {
      mode: "vega-lite", renderer: few ? "svg" : "canvas",
      actions: { export: true, source: false, compiled: false, editor: false },
      tooltip: { theme: DARK.matches ? "dark" : "light" },
      downloadFileName: figure.file,
    });
    figure.view?.finalize();
    figure.view = result.view;
    element.classList.add("drawn");
    follow(figure);
  }

  function follow(figure) {
    const { view, element } = figure, said = element.querySelector("output");
    const choose = keys => {
      tables[figure.table]?.(keys);
      said.textContent = keys ? `${keys.size.toLocaleString("en")} chosen` : "";
    };
    const signals = view.getState().signals;
    if (!("brush" in signals)) return;
    const rows = datasets[figure.datasets[0]];
    const within = ranges => new Set(rows.filter(row => Object.entries(ranges).every(
      ([field, [low, high]]) => row[field] >= Math.min(low, high) && row[field] <= Math.max(low, high)
    )).map(row => row.key));
    let waiting;
    view.addSignalListener("brush", (name, ranges) => {
      clearTimeout(waiting);
      waiting = setTimeout(() => choose(Object.keys(ranges).length ? within(ranges) : null), 150);
    });
    view.addEventListener("click", (event, item) => {
      if (item?.datum && "key" in item.datum) choose(new Set([item.datum.key]));
    });
    element.querySelector(".all").onclick = () => { choose(null); draw(figure); };
    element.querySelectorAll("[data-factor]").forEach(button => {
      button.onclick = () => zoom(view, Number(button.dataset.factor));
    });
  }

  function zoom(view, factor) {
    for (const { field, channel } of view.signal("zoom_tuple_fields")) {
      const [low, high] = view.scale(channel).domain().map(Number);
      const middle = (low + high) / 2, half = (high - low) / 2 * factor;
      view.signal(`zoom_${field}`, [middle - half, middle + half]);
    }
    view.runAsync();
  }

  function makeFigure(element) {
    const spec = content(element.querySelector("script"));
    const named = new Set();
    JSON.stringify(spec, (key, value) => {
      if (key === "data" && value?.name) named.add(value.name);
      return value;
    });
    const figure = { element, spec, datasets: [...named], table: element.dataset.table,
      file: element.dataset.file };
    figures.push(figure);
    // Far figures are drawn when they come near, so that long pages open at once.
    new IntersectionObserver((seen, observer) => {
      if (!seen.some(each => each.isIntersecting)) return;
      observer.disconnect();
      draw(figure);
    }, { rootMargin: "800px" }).observe(element);
  }

  function asRows(columns) {
    const names = Object.keys(columns);
    return (columns[names[0]] ?? []).map((_, row) =>
      Object.fromEntries(names.map(name => [name, columns[name][row]])));
  }

  const follow_scheme = () => document.documentElement.classList.toggle("dark", DARK.matches);
  follow_scheme();
  DARK.addEventListener("change", () => {
    follow_scheme();
    figures.filter(each => each.view).forEach(draw);
  });
  document.querySelectorAll("script[data-dataset]").forEach(element => {
    datasets[element.dataset.dataset] = asRows(content(element));
  });
  document.querySelectorAll("figure.table").forEach(makeTable);
  document.querySelectorAll("figure.chart").forEach(makeFigure);
})();
