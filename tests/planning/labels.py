"""What each tensor of transformers' models should do, written down from reading their sources.

Classes and attributes were listed, and each attribute that is not torch's own was looked up in the code of its class.
Nothing here looks at uses or calls the package: these labels are what it is measured against.
"""

from __future__ import annotations

import re
from typing import Literal

from weightdecay.planning.evidence.tensors import Site, TensorFacts

Label = Literal["decays", "exempt", "disputed"]


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# single learned tokens, learned queries and prompts: opinions differ
_TOKENS = words(
    """
    cls_token class_embedding mask_token mask_tokens masked_spec_embed image_newline register_tokens probe
    query_tokens latents latents_1d latents_2d latent_query bos_latent distillation_token detection_tokens
    no_memory_embedding no_memory_positional_encoding no_object_pointer occlusion_spatial_embedding_parameter
    image_begin image_end image_sep view_separator silence_embeds cls_register_token segment_token_input
    segment_token_prompt type_token_semantic type_token_instance eoi_embedding text_prompt pad_up pad_down pad_left
    pad_right pooling_attention_query cls_emb mask_emb global_img_feature_extensor sub_img_feature_extensor z_L_init
    group_token cls_position_embedding class_pos_emb latent
    """
)
# relative-position tables: opinions differ
_RELATIVE = words(
    """
    rel_pos_h rel_pos_w relative_position_bias_table position_bias attention_biases relative_attention_bias
    emb_rel_k emb_rel_v index_kpool_compress_ape
    """
)
# the same as modules: nn.Embedding that holds relative positions, object queries or single tokens
_DISPUTED_EMBEDDINGS = re.compile(
    r"(^|\.)(relative_.*|rel_pos_emb|rel_embeddings|rel_attn_embed|distance_embedding|pe_k|query_position_embeddings"
    r"|query_embed|query_refpoint_embeddings|query_feat|queries_embedder|queries_features|reference_points?(_embed)?|no_mask_embed|point_embed"
    r"|not_a_point_embed|iou_token|mask_tokens|obj_score_token|cls_embed|presence_token|hq_token|label_embed"
    r"|denoising_class_embed|ngram_embeddings|audio_bos_eos_token|object_queries)\.weight$"
)
# matrices, stacks and tables that are bare parameters of their class
_DECAYING = words(
    """
    position_embeddings pos_embed position_embedding position_embedding_table time_embeddings position_enc
    mid_position_embeddings pos_embed_window memory_temporal_positional_encoding level_embed seg_embed down_proj
    up_proj gate_proj gate_up_proj fn hc_fn mm_input_projection_weight proj w1 w2 v1 static_weight input_gate_weight
    recurrent_gate_weight q k v o r r_kernel x_proj_weight dt_proj_weight prompts_visual_projection w_g
    positional_embedding index_kpool_compress_gate text_projection
    """
)
# gains, biases, scales, gates, state-space parameters and mixes, of any rank
_EXEMPT = words(
    """
    bias logit_scale A_log dt_bias D scale sinks lambda1 lambda_1 lambda_2 alpha layer_scale pos_bias_u pos_bias_v
    per_dim_scale base hc_base hc_scale e_score_correction_bias gate_up_proj_bias down_proj_bias time_mix_key
    time_mix_receptance time_mix_value time_decay time_first r_r_bias r_s_bias r_w_bias temperature bias_u bias_v
    vision_param text_param beta layer_scale_1 layer_scale_2 logit_bias scaling expert_bias alpha_p alpha_n
    gate_bias lambda_q1 lambda_k1 lambda_q2 lambda_k2 input_residual post_attention_residual A in_proj_bias
    correct_output_scale dense_bias global_scale b1 b2 recurrent_param input_gate_bias recurrent_gate_bias
    dt_proj_bias input_hidden_states_scale input_hidden_states_bias temp hidden_states_scale hidden_states_bias
    residual_scale residual_bias router_states_scale logit_scale_a logit_scale_t layer_scale_parameter q_bias v_bias
    high_res_vision_alpha reg_scale up gamma gate_attention gate_ffw alpha_cross_attn alpha_dense gamma_1 gamma_2
    gate lambdas text_audio_logit_scale text_audio_logit_bias closure_weight pos_emb_alpha_char pos_emb_alpha
    translate log_scale gru_rel_pos_const per_expert_scale ffn_gamma latent_bias_factor latent_scaling_factor
    audio_plus_text_logit_bias audio_plus_text_logit_scale audio_video_logit_bias audio_video_logit_scale
    text_audio_video_logit_bias text_audio_video_logit_scale video_plus_text_logit_bias video_plus_text_logit_scale
    text_video_logit_bias text_video_logit_scale
    """
)
# classes whose `query` is a set of learned queries
_QUERIES = re.compile(r"AriaProjector|GraniteSpeech\w*Projector|Inkling2BlockAttentionResidual")
# classes, not torch's, whose `weight` is a matrix, a stack or a table
_MATRICES = re.compile(r"Router|ParallelExperts|CodebooksHead$|^Conv1D$|^QuantLinear$|^QuantEmbedding$")


def label(facts: TensorFacts) -> Label:
    """The label of a tensor; one exempt site exempts a tied tensor."""
    labels = {_at(site, facts) for site in facts.sites}
    return "exempt" if "exempt" in labels else "disputed" if "disputed" in labels else "decays"


def _at(site: Site, facts: TensorFacts) -> Label:
    if not facts.trainable:
        return "exempt"
    return _of_torch(site, facts) or _of_their_own(site, facts)


def _of_torch(site: Site, facts: TensorFacts) -> Label | None:
    bases, attribute = set(site.bases), site.attribute
    if site.original == "original0":  # the gain of weight norm
        return "exempt"
    if "Embedding" in bases and attribute == "weight":
        if "Sinusoidal" in site.owner:
            return "exempt"
        return "disputed" if facts.shape[0] == 1 or _DISPUTED_EMBEDDINGS.search(site.name) else "decays"
    if (bases & {"Linear", "_ConvNd"} and attribute == "weight") or attribute == "in_proj_weight":
        return "decays"
    if "RNNBase" in bases:
        return "decays" if attribute.startswith("weight") else "exempt"
    if bases & {"LayerNorm", "GroupNorm", "_NormBase", "PReLU"} or (bases and attribute == "bias"):
        return "exempt"
    return None


def _of_their_own(site: Site, facts: TensorFacts) -> Label:
    attribute = site.attribute
    longer = sum(size > 1 for size in facts.shape)
    if attribute in _TOKENS | _RELATIVE or (attribute == "query" and _QUERIES.match(site.owner)):
        return "disputed"
    if attribute in _DECAYING:
        return "decays" if longer > 1 or attribute == "w_g" else "disputed"
    if site.owner == "ParameterList":  # the axial position tables of Reformer
        return "decays"
    if attribute == "weight" and _MATRICES.search(site.owner):
        return "decays"
    if attribute in _EXEMPT or (attribute == "weight" and longer < 2):
        return "exempt"
    raise LookupError(f"{site.name} of {site.owner}, shape {facts.shape}: read its source and label it")
