torchrun --nproc_per_node=8 internvl/train/internvl_chat_mpo.py \
  --model_name_or_path OpenGVLab/InternVL2-8B --meta_path MMPR/meta.json --pad2square False \
  --use_data_resampling False --save_strategy "no" --learning_rate 5e-6 --bf16 True \
  --dynamic_image_size True --use_thumbnail True --max_seq_length 6144 \
  --loss_type sigmoid,bco_pair --sigmoid_loss_weight 0.8 --bco_pair_loss_weight 0.2 --rpo_alpha 1
