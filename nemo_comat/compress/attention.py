"""Positional queries: one per token, each collects its segment from the encoder's frames by cross-attention.

Source: the "ATT" of KT-RL, arXiv 2203.03582. That the frames' positions are added to the keys, and the treatment of
impossible rows, are ours.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from nemo_comat.compress.frames import usable_frames
from nemo_comat.compress.segments import Compressed
from nemo_comat.lengths import length_mask
from nemo_comat.positions import sinusoids


class AttentionCompressor(nn.Module):
    """One layer of cross-attention: the queries are projected position encodings, the values the frames.

    Args:
        feat_in: width of the encoder's frames.
        heads: attention heads; must divide feat_in.
    Raises:
        ValueError: heads does not divide feat_in.
    Examples:
        >>> hidden, frame_len, text_len = torch.randn(1, 20, 8), torch.tensor([20]), torch.tensor([3])
        >>> AttentionCompressor(feat_in=8, heads=2)(hidden, frame_len, None, None, None, text_len, 5).segments.shape
        torch.Size([1, 5, 8])
    """

    def __init__(self, feat_in: int, *, heads: int = 4) -> None:
        super().__init__()
        if heads < 1 or feat_in % heads:
            raise ValueError(f"compress.heads must divide the encoder's width {feat_in}; got {heads}")
        self.query = nn.Linear(feat_in, feat_in)
        self.attention = nn.MultiheadAttention(feat_in, heads, batch_first=True)

    def forward(
        self,
        hidden: Tensor,
        frame_len: Tensor,
        log_probs: Tensor,
        targets: Tensor,
        target_len: Tensor,
        text_len: Tensor,
        n_tokens: int,
    ) -> Compressed:
        """One segment per token, from the frames and the number of tokens alone.

        Args:
            hidden: [B, T, D] encoder frames; gets gradients.
            frame_len: [B] valid frames.
            log_probs, targets, target_len: not read.
            text_len: [B] tokens of the language model.
            n_tokens: N, a number known on the host.
        Returns:
            Compressed with S = N and no labels; `seg_of_frame` is the segment that attends to the frame most. Rows
            without frames, or with one that is not finite, have seg_len 0.
        """
        hidden, inside, usable = usable_frames(hidden, frame_len)
        segments, attended = self.attend(hidden, inside, n_tokens)
        kept = length_mask(torch.where(usable, text_len, 0), n_tokens)
        attended = attended.detach().masked_fill(~kept[..., None], -1)
        seg_of_frame = (attended if n_tokens else pad(attended, (0, 0, 0, 1))).argmax(1)
        return Compressed(
            segments=torch.where(kept[..., None], segments, 0),
            seg_len=kept.sum(1),
            seg_of_frame=torch.where(inside & kept.any(1, keepdim=True), seg_of_frame, -1),
            seg_label=seg_of_frame.new_full((len(hidden), n_tokens), -1),
            loss=segments.new_zeros(len(hidden)),
        )

    def attend(self, hidden: Tensor, inside: Tensor, n_tokens: int) -> tuple[Tensor, Tensor]:
        """Queries over frames.

        Args:
            hidden: [B, T, D]. inside: [B, T] bool, True = a frame that may be attended to. n_tokens: N.
        Returns:
            segments [B, N, D] and the heads' mean attention [B, N, T], both float32. A row without frames attends to
            its first one.
        """
        dtype = self.query.weight.dtype
        query = self.query(sinusoids(n_tokens, hidden.shape[2], device=hidden.device).to(dtype))
        key = hidden + sinusoids(hidden.shape[1], hidden.shape[2], device=hidden.device)
        # a softmax over nothing would be NaN, in the gradient too
        first = torch.arange(hidden.shape[1], device=hidden.device) == 0
        padding = ~(inside | first)
        segments, attended = self.attention(
            query.expand(len(hidden), -1, -1), key.to(dtype), hidden.to(dtype), key_padding_mask=padding
        )
        return segments.float(), attended.float()
