srun --ntasks=${GPUS:-512} python -u internvl/train/internvl_chat_pretrain.py \
  --model_name_or_path "./work_dirs/stage1_5/" --conv_style "internvl2_5" \
  --use_fast_tokenizer False --output_dir work_dirs/stage2 --meta_path mixture.json \
  --min_num_frame 8 --max_num_frame 32 --freeze_backbone False --max_steps 5500 --bf16 True \
  --per_device_train_batch_size 1 --gradient_accumulation_steps 1 --learning_rate 4e-5 \
  --weight_decay 0.05 --warmup_ratio 0.03 --lr_scheduler_type "cosine" --save_steps 100 \
  --max_seq_length 16384 --dynamic_image_size True --use_thumbnail True --drop_path_rate 0.1 \
  --use_packed_ds True --num_images_expected 48 --max_packed_tokens 16384 --max_buffer_size 20 \
  --log_freq 1000 --strict_mode False --replacement False --allow_overflow False \
  --remove_unused_columns False --loss_reduction "square" --loss_reduction_all_gather True
