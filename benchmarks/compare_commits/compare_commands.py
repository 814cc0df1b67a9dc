"""The commands that compare_commits.py runs: all of them, on small cells and models."""

import re

SMALL = (
    "--config.model.layers=2 --config.model.width=32 --config.model.feed_forward=64 "
    "--config.model.initializer_range=0.1 --config.steps=10 --config.optimizer.warmup_steps=2 "
    "--config.evaluation.held_out_cells=20 --config.evaluation.every_steps=5 "
    "--config.checkpoint.every_steps=5 --config.log_every_steps=2"
)
TUNED = (
    "--config.steps=4 --config.optimizer.warmup_steps=1 "
    "--config.optimizer.learning_rate=0.003 --config.data.most_buckets=1 --config.log_every_steps=2"
)
MEASURED = (
    "build_vocabulary --counts={cells}/corpus --output={out} --min_cells=3 --special_tokens=v2 "
    "--quality=paper"
)
RANKED = (
    "tokenize --counts={cells}/corpus --vocabulary={side}/vocabulary_v2 "
    "--output={out}/cells --quality=paper --obs=donor,condition,n_genes"
)
MODEL = "--checkpoint={side}/pretrain"
CELLS = "--cells={side}/store"
STATES = "--states=subpop --start='T cell' --goal='B cell' --alternatives='NK cell'"
GENES = "--genes=B2M,ACTB,TMSB4X,FTL"
PERTURB = f"perturb {MODEL} {CELLS} --output={{out}} --cells_at_most=6"
SHARED = (
    "perturb --checkpoint={side}/pretrain_v2 --cells={side}/store_v2/cells --output={out} "
    "--edit=delete --states=condition --start=Covid_Mild --goal=Healthy --cells_at_most=2 "
    "--state_embeddings={side}/embed_cls/cls.states.parquet"
)

# Name -> one command with its flags on each line. {out} is the command's own output, {side}/NAME
# that of an earlier one. Flags are spelled as in the checkout `before`.
COMMANDS = {
    "vocabulary": """
build_vocabulary --counts={cells}/pbmc.h5ad --gene_table={cells}/genes.tsv --output={out}
""",
    "vocabulary_v2": f"""
{MEASURED} --shard=0/2
{MEASURED} --shard=1/2
{MEASURED} --finish
""",
    "dictionaries": """
convert --source={data}/dictionaries/v1_gc30M --target={out}
""",
    "store": """
tokenize --counts={cells}/pbmc.h5ad --vocabulary={side}/vocabulary --output={out} \
--obs=celltype,subpop
tokenize --output={out} --verify
""",
    "store_v2": f"""
{RANKED} --shard=0/2
{RANKED} --shard=1/2
{RANKED} --finish --report={{out}}/report
""",
    "store_of_dictionaries": """
tokenize --counts={cells}/pbmc.h5ad --vocabulary={side}/dictionaries --output={out} \
--obs=celltype --max_length=100 --gene_column=ensembl_id --exclude=subpop=CD34+ \
--prefix_cell_ids --min_genes=150
""",
    "dataset": """
convert --source={side}/store --target={out}/store.parquet
convert --source={out}/store.parquet --target={out}/again --vocabulary={side}/vocabulary
convert --source={side}/store --target={out}/store.dataset
""",
    "pretrain": f"""
pretrain --config=configs/quickstart.py --config.data.store={{side}}/store --workdir={{out}} {SMALL}
""",
    "pretrain_v2": f"""
pretrain --config=configs/quickstart.py --config.data.store={{side}}/store_v2/cells {SMALL} \
--workdir={{out}} --config.data.packing=True --config.data.cells_per_batch=0 \
--config.data.tokens_per_batch=4096 --config.masking.on_device=True
""",
    "pretrain_bfloat16": f"""
pretrain --config=configs/quickstart.py --config.data.store={{side}}/store --workdir={{out}} \
{SMALL} --config.initial={{side}}/pretrain --config.runtime.precision=bfloat16 \
--config.runtime.micro_batches=2 --config.optimizer.schedule=linear --config.steps=4
""",
    "dry_run": f"""
pretrain --config=configs/quickstart.py --config.data.store={{side}}/store --dry_run {SMALL}
pretrain --config=configs/pretrain_v1_10m.py --dry_run --corpus=1000000x2048
""",
    "imported": """
convert --source={reference}/models/v1_tiny --target={out} --vocabulary={data}/dictionaries/v1_gc30M
""",
    "exported": """
convert --source={side}/pretrain --target={out}
""",
    "embed": f"""
embed {MODEL} {CELLS} --counts={{cells}}/pbmc.h5ad --output={{out}}/embeddings.h5ad \
--color=subpop --quality=subpop --figures
""",
    "embed_counts": f"""
embed {MODEL} --cells={{cells}}/new.h5ad --output={{out}}/embeddings.h5ad --layer=0 \
--precision=bfloat16
""",
    "embed_layers": f"""
embed {MODEL} {CELLS} --output={{out}}/large.parquet --layer=-1,0 \
--filter='subpop:T cell|B cell' --cells_at_most=40 --states=subpop --quantiles=0.1,0.9
embed {MODEL} {CELLS} --output={{out}}/embeddings.npy
""",
    "embed_genes": f"""
embed {MODEL} {CELLS} --output={{out}}/genes.h5ad --mode=gene {GENES} --figures
embed {MODEL} {CELLS} --output={{out}}/occurrences.parquet --mode=occurrence --cells_at_most=5
""",
    "embed_cls": """
embed --checkpoint={side}/pretrain_v2 --cells={side}/store_v2/cells --output={out}/cls.h5ad \
--mode=cls --states=condition
""",
    "embed_imported": """
embed --checkpoint={reference}/models/v1_tiny --vocabulary={side}/dictionaries \
--cells={side}/store_of_dictionaries --output={out}/embeddings.h5ad --cells_at_most=20
""",
    "finetune_cells": f"""
finetune --config=configs/finetune_cells.py --config.data.store={{side}}/store_v2/cells {TUNED} \
--checkpoint={{side}}/pretrain_v2 --config.task.label=condition --config.task.group=donor \
--config.task.folds=2 --config.task.valid_share=0 --workdir={{out}}
""",
    "finetune_lora": f"""
finetune --config=configs/finetune_cells.py --config.data.store={{side}}/store {TUNED} {MODEL} \
--config.task.label=subpop --config.task.baselines=True --config.tuning.lora_rank=2 \
--config.head.pooling=attention --config.loss.class_weights=balanced --workdir={{out}}
""",
    "finetune_genes": f"""
finetune --config=configs/tasks/dosage.py --config.data.store={{side}}/store {TUNED} {MODEL} \
--config.task.genes={{data}}/genes/dosage_sensitivity_TFs.tsv --config.tuning.freeze_layers=1 \
--config.task.counts={{cells}}/pbmc.h5ad --config.task.cells_at_most=60 --config.task.folds=2 \
--config.task.permutations=2 --config.task.untrained_layers=(1,) --workdir={{out}}
""",
    "finetune_targets": f"""
finetune --config=configs/finetune_targets.py --config.data.store={{side}}/store_v2/cells {TUNED} \
--checkpoint={{side}}/pretrain_v2 --config.targets.classes=condition,donor \
--config.targets.numbers=n_genes --workdir={{out}}
""",
    "finetune_search": f"""
finetune --config=configs/finetune_cells.py --config.data.store={{side}}/store {TUNED} {MODEL} \
--config.task.label=subpop --trials=2 --workdir={{out}}
""",
    "merged": """
convert --source={side}/finetune_lora/networks/Geneformer/fold_0 --target={out}
""",
    "predict": """
predict --checkpoint={side}/finetune_lora/networks/Geneformer/fold_0 --cells={cells}/new.h5ad \
--output={out}/cells.h5ad --label=subpop
predict --checkpoint={side}/finetune_targets/networks/Geneformer/fold_0 \
--cells={side}/store_v2/cells --output={out}/targets.parquet
predict --checkpoint={side}/finetune_genes/networks/Geneformer/fold_0 --cells={side}/store \
--output={out}/genes.csv
""",
    "perturb": f"""
{PERTURB} --edit=delete {STATES} --statistics=goal_state_shift,mixture_model,aggregate
""",
    "perturb_null": f"""
{PERTURB} --edit=delete --filter='subpop:NK cell'
""",
    "perturb_against_null": f"""
{PERTURB} --edit=delete --filter='subpop:T cell' --statistics=vs_null,mixture_model \
--null={{side}}/perturb_null
""",
    "perturb_list": f"""
{PERTURB} --edit=delete {GENES} --combine=each --gene_shifts=full \
--statistics=aggregate,aggregate_gene_shifts
""",
    "perturb_pairs": f"""
{PERTURB} --edit=delete {GENES} --combine=pairs --gene_shifts=means --statistics=combinations
""",
    "perturb_together": f"""
{PERTURB} --edit=delete {GENES} --combine=together --truncation=refill
""",
    "perturb_overexpress": f"""
{PERTURB} --edit=overexpress {GENES} --gene_shifts=top --top=10 --layer=0
""",
    "perturb_inhibit": f"""
{PERTURB} --edit=inhibit {GENES} --ranks=20 --anchor=RPS27
""",
    "perturb_activate": f"""
{PERTURB} --edit=activate --genes=FTL,RPS27 --quantile=0.2 --expressing=B2M --mode=cell
""",
    "perturb_combinations": f"""
{PERTURB} --edit=delete --combinations={{cells}}/combinations.txt
""",
    "perturb_cls": f"""
{SHARED} --shard=0/2
{SHARED} --shard=1/2
{SHARED} --finish
""",
    "perturb_classes": """
perturb --checkpoint={side}/finetune_cells/networks/Geneformer/fold_0 --output={out} \
--cells={side}/store_v2/cells --edit=overexpress --classes --cells_at_most=4 --genes=ENSG00000166710
""",
    "attend": f"""
attend {MODEL} {CELLS} --output={{out}} --genes={{data}}/genes/lambert2018_TF_names_v_1.01.txt \
--group_by=subpop --control=random
""",
    "attend_pairs": f"""
attend {MODEL} {CELLS} --output={{out}} --genes={{data}}/genes/dosage_sensitivity_TFs.tsv \
--pairs=B2M,ACTB,FTL --layers=2 --heads=1 --least_cells=2 --attention=xla
""",
    "calls": """
calls {side}/pretrain {side}/finetune_lora/networks/Geneformer/fold_0 \
{side}/finetune_genes/networks/Geneformer/fold_0 {cells}/new.h5ad {side}/store {out}
""",
}


def needed(text: str) -> set[str]:
    """Returns the names of the commands whose output a command reads."""
    return set(re.findall(r"\{side\}/(\w+)", text))
