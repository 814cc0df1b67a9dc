#!/usr/bin/env bash
# DataTables with ColumnControl: "less than" keeps the rows that have no number.
#
# Tables of results have empty cells where a test was not made: a gene in too few cells has no FDR.
# Expected: the filter "FDR less than 0.05" leaves the genes whose FDR is below it; a gene without an
# FDR is neither below nor above.
# Seen: genes without an FDR stay too. An empty cell counts as minus infinity, so it passes every
# "less than", and is below every number in "less or equal".
# Whoever reads off the filtered table counts untested genes as hits.
# Fails if that changes. Needs Node.js and npm.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
echo '{"private": true}' > package.json
npm install --silent --no-audit --no-fund \
  datatables.net@3.1.5 datatables.net-columncontrol@2.1.1 jsdom@26.1.0
cat > finding.cjs <<'JAVASCRIPT'
const { JSDOM } = require("jsdom");
const fs = require("fs");

const rows = [["CD74", "0.001"], ["LYZ", "0.4"], ["NKG7", ""], ["GNLY", "0"]];
const page = new JSDOM(
  `<table id="t"><thead><tr><th>gene</th><th>FDR</th></tr></thead><tbody>${rows
    .map((row) => `<tr><td>${row[0]}</td><td>${row[1]}</td></tr>`)
    .join("")}</tbody></table>`,
  { runScripts: "outside-only", pretendToBeVisual: true },
);
for (const name of ["datatables.net", "datatables.net-columncontrol"]) {
  const { version } = JSON.parse(fs.readFileSync(`node_modules/${name}/package.json`));
  console.log(name, version);
  const file = name === "datatables.net" ? "dataTables" : "dataTables.columnControl";
  page.window.eval(fs.readFileSync(`node_modules/${name}/js/${file}.js`, "utf8"));
}
const table = new page.window.DataTable("#t", {
  columnDefs: [{ targets: 1, type: "num", columnControl: ["searchNumber"] }],
});

function kept(logic, value) {
  const cell = page.window.document.querySelectorAll("th")[1];
  const choice = cell.querySelector("select");
  const input = cell.querySelector("input");
  choice.value = logic;
  input.value = value;
  choice.dispatchEvent(new page.window.Event("input"));
  input.dispatchEvent(new page.window.Event("input"));
  const shown = page.window.document.querySelectorAll("tbody tr td:first-child");
  return Array.from(shown, (gene) => gene.textContent).sort().join(" ");
}

const less = kept("less", "0.05");
const greater = kept("greater", "0.05");
console.log("less than 0.05:", less);
console.log("greater than 0.05:", greater);
if (less !== "CD74 GNLY NKG7" || greater !== "LYZ") process.exit(1);
JAVASCRIPT
node finding.cjs
