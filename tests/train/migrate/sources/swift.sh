CUDA_VISIBLE_DEVICES=0,1,2,3 \
NPROC_PER_NODE=4 \
MAX_NUM=6 \
swift sft \
    --model OpenGVLab/InternVL2-8B \
    --tuner_type lora \
    --dataset 'train.jsonl#2' \
    --torch_dtype bfloat16 \
    --num_train_epochs 1 \
    --per_device_train_batch_size 1 \
    --learning_rate 1e-4 \
    --lora_rank 8 \
    --lora_alpha 32 \
    --target_modules all-linear \
    --freeze_vit false \
    --vit_lr 1e-5 \
    --aligner_lr 2e-5 \
    --gradient_accumulation_steps 16 \
    --save_steps 50 \
    --save_total_limit 2 \
    --logging_steps 5 \
    --max_length 2048 \
    --packing true \
    --output_dir output \
    --warmup_ratio 0.05 \
    --dataloader_num_workers 4 \
    --attn_impl flash_attn \
    --deepspeed zero2
