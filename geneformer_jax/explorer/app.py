"""The explorer's page, as an app of marimo: what depends on a control is shown anew as it changes.

Each function is a cell of the app; its arguments are what other cells return. What belongs to a
section that is not open is None.
"""

import marimo

app = marimo.App(width="full", app_title="geneformer_jax")


@app.cell
def _():
    import marimo as mo

    from geneformer_jax.explorer import cells, genes, runs, shifts
    from geneformer_jax.explorer.chosen import chosen_rows
    from geneformer_jax.explorer.folder import RESULTS
    from geneformer_jax.explorer.pieces import chart, choice, heading, rows, stack, text, tried
    from geneformer_jax.perturbation.layout import MEANINGS, WORDS
    from geneformer_jax.reporting import charts

    results = mo.app_meta().request.meta[RESULTS]
    return (
        MEANINGS, WORDS, cells, chart, charts, choice, chosen_rows, genes, heading, mo, results,
        rows, runs, shifts, stack, text, tried,
    )  # fmt: skip


@app.cell
def _(heading, mo, results, stack, text):
    section = mo.ui.tabs(dict.fromkeys(["Cells", "Genes", "Perturbations", "Runs"], ""))
    stack(heading(results.folder.name), text(results.describe(), *results.left_out), section)
    return (section,)


# Cells: a map, and the chosen ones as a table.


@app.cell
def _(choice, mo, results):
    cells_file = choice("embeddings", results.embeddings)
    cells_store = choice("ranks in", results.stores)
    gene = mo.ui.text(label="or by a gene", placeholder="id or symbol")
    return cells_file, cells_store, gene


@app.cell
def _(cells, cells_file, choice, tried):
    cell_map, why_no_map = tried(cells.read_cells, cells_file.value)
    colour = choice("colour by", cell_map.obs.columns.astype(str) if cell_map is not None else [])
    return cell_map, colour, why_no_map


@app.cell
def _(cell_map, cells, cells_file, cells_store, chart, charts, colour, gene, mo, section, stack,
      text, tried, why_no_map):  # fmt: skip
    def _draw():
        values = cells.values_of(cell_map, colour.value, cells_store.value, gene.value.strip())
        return chart(charts.embedding_map(cell_map.positions, values, cell_map.obs.index))

    _is_open = section.value == "Cells"
    cells_chart, _why = tried(_draw) if _is_open and cell_map is not None else (None, why_no_map)
    _controls = mo.hstack([cells_file, colour, gene, cells_store], justify="start", wrap=True)
    if not cells_file.options:
        _controls, _why = None, "There are no embeddings of cells below this folder; embed them."
    _told = text(_why or (cells.describe(cell_map) if cell_map is not None else ""))
    stack(_controls, _told, cells_chart) if _is_open else None
    return (cells_chart,)


@app.cell
def _(cell_map, cells, cells_chart, chosen_rows, rows, stack, text):
    def _show():
        table = cells.obs_table(cell_map)
        chosen, words = chosen_rows(table, table.columns[0], cells_chart)
        return stack(text(words), rows(chosen))

    _show() if cells_chart is not None else None
    return


# Genes: all of them to search, and what is known of the chosen one.


@app.cell
def _(genes, heading, results, rows, section, stack, text):
    genes_table = None
    if section.value == "Genes":
        _known = genes.known_genes(results)
        genes_table = rows(_known, choose=True)
        _words = "Choose one to see what is known of it." if len(_known) else "None are known here."
    stack(heading("Genes"), text(_words), genes_table) if genes_table is not None else None
    return (genes_table,)


@app.cell
def _(MEANINGS, WORDS, chart, genes, genes_table, heading, results, rows, shifts, stack, text,
      tried):  # fmt: skip
    def _ranks(name, store, gene_id):
        found, why = tried(genes.rank_chart, store, gene_id)
        drawn, words = found or (None, why)
        return stack(
            heading(f"Rank in {name}"), text(words), None if drawn is None else chart(drawn)
        )

    def _table(title, make, *given):
        found, why = tried(make, *given)
        if found is None or len(found):
            told = rows(found, WORDS, MEANINGS) if found is not None else text(why)
            return stack(heading(title), told)
        return None

    def _all_of(gene, gene_id):
        yield heading(f"{gene} ({gene_id})" if gene != gene_id else gene)
        for name, store in results.stores.items():
            yield _ranks(name, store, gene_id)
        for name, path in results.gene_embeddings.items():
            yield _table(f"Nearest in {name}", genes.neighbours, path, gene_id)
        for name, folder in results.perturbations.items():
            statistics, why = tried(shifts.statistics_of, folder)
            yield text(why)
            for statistic in statistics or []:
                title = f"Shifts when it is edited: {name}, {statistic.replace('_', ' ')}"
                yield _table(title, shifts.edits_of_gene, folder, statistic, gene_id)
            if shifts.has_gene_shifts(folder):
                title = f"Edits that move it: {name}"
                yield _table(title, shifts.affecting, folder, gene_id)
        for name, folder in results.classifiers.items():
            yield _table(f"Classes: {name}", genes.classes_of_gene, folder, gene_id)

    _chosen = [] if genes_table is None else genes_table.value
    stack(*_all_of(*_chosen.iloc[0])) if len(_chosen) else None
    return


# Perturbations: edits, the genes that one of them moves, and the edits that move one of these.


@app.cell
def _(choice, results):
    perturbation = choice("perturbation", results.perturbations)
    return (perturbation,)


@app.cell
def _(choice, perturbation, shifts, tried):
    _names, why_no_statistic = tried(shifts.statistics_of, perturbation.value)
    statistic = choice("statistic", {name.replace("_", " "): name for name in _names or []})
    return statistic, why_no_statistic


@app.cell
def _(chart, mo, perturbation, section, shifts, stack, statistic, text, tried, why_no_statistic):
    edits, edits_chart, _why = None, None, why_no_statistic
    _is_open = section.value == "Perturbations"
    if _is_open and statistic.value:
        edits, _why = tried(shifts.read_statistic, perturbation.value, statistic.value)
        edits_chart = None if edits is None else chart(shifts.edits_chart(edits))
    if not perturbation.options:
        _why = "There are no perturbations below this folder; perturb makes them."
    _controls = mo.hstack([perturbation, statistic], justify="start", wrap=True)
    _told = _why if edits is None else shifts.CAUTION
    stack(_controls, text(_told), edits_chart) if _is_open else None
    return edits, edits_chart


@app.cell
def _(MEANINGS, WORDS, chosen_rows, edits, edits_chart, heading, rows, stack, text):
    edits_table = None
    if edits_chart is not None:
        _chosen, _words = chosen_rows(edits, "Ensembl_ID", edits_chart)
        edits_table = rows(_chosen, WORDS, MEANINGS, choose=True)
        _words += " Choose one to see the genes that it moves."
    stack(heading("Edits"), text(_words), edits_table) if edits_table is not None else None
    return (edits_table,)


@app.cell
def _(WORDS, edits_table, heading, perturbation, rows, shifts, stack, text, tried):
    affected_table, _shown = None, None
    if edits_table is not None and len(edits_table.value):
        _row = edits_table.value.iloc[0]
        _found, _why = tried(shifts.affected_by, perturbation.value, _row[WORDS["Ensembl_ID"]])
        if _found is not None:
            affected_table = rows(_found, meanings=shifts.MEANINGS_OF_PAIRS, choose=True)
            _why = "Most moved first. Choose one to see the edits that move it."
        _title = heading(f"Genes that {_row[WORDS['Gene_name']]} moves")
        _shown = stack(_title, text(_why), affected_table)
    _shown
    return (affected_table,)


@app.cell
def _(affected_table, heading, perturbation, rows, shifts, stack, text, tried):
    _shown = None
    if affected_table is not None and len(affected_table.value):
        _row = affected_table.value.iloc[0]
        _found, _why = tried(shifts.affecting, perturbation.value, _row["gene_id"])
        _table = None if _found is None else rows(_found, meanings=shifts.MEANINGS_OF_PAIRS)
        _shown = stack(heading(f"Edits that move {_row['gene']}"), text(_why), _table)
    _shown
    return


# Runs: losses.


@app.cell
def _(mo, results):
    chosen_runs = mo.ui.multiselect(results.runs, list(results.runs)[:6], label="runs")
    return (chosen_runs,)


@app.cell
def _(chart, chosen_runs, results, rows, runs, section, stack, text):
    _shown = None
    if section.value == "Runs":
        _picked = {name: path for name, path in results.runs.items() if path in chosen_runs.value}
        _drawn = runs.runs_chart(_picked)
        _why = "" if results.runs else "There are no runs below this folder; pretrain makes them."
        _table = rows(runs.last_values(_picked)) if _picked else None
        _shown = stack(chosen_runs, text(_why), None if _drawn is None else chart(_drawn), _table)
    _shown
    return


if __name__ == "__main__":
    app.run()
