"""A strong model and small experts as one transformers model.

    from weightgen import WeakToStrong
    model = WeakToStrong("strong", experts=[("expert", "anchor")], rule="dynamic")
    model.generate(**tokenizer("Question", return_tensors="pt"))

Everything that works on a causal model of transformers works on it: the forward pass returns fused logits, and the
cache it returns holds the caches of all models.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast

from weightgen.decode.cache import FusedCache
from weightgen.decode.config import PROMPT_ROLES, WeakToStrongConfig
from weightgen.decode.evidence import extend_evidence
from weightgen.decode.loading import Source, check_pairs, explain_memory, load_model, load_pair, load_tokenizer, name_of
from weightgen.decode.passes import Member, plan_passes
from weightgen.fusion import apply_rule, find_rule
from weightgen.fusion.vocabulary import share_vocabulary
from zoo.config import dump_config
from zoo.errors import UsageError, WeightgenError


@dataclass
class FusedOutput(CausalLMOutputWithPast):
    """Output of a fused model.

    Attributes:
        alphas: weight of each expert at each position whose logits are returned, [b, t, k].
    """

    alphas: Tensor | None = None


class WeakToStrong(PreTrainedModel, GenerationMixin):
    """A strong model steered at decoding time by small experts; a causal language model like any other.

    Args:
        strong: id, folder or loaded model.
        experts: pairs of an expert and the small model it was tuned from. An expert may be a PEFT adapter on its
            anchor, or a task sum ``{expert: weight, ...}``; ``None`` as anchor of a loaded PEFT model means its base.
        rule: name of the fusion rule.
        settings: settings of the rule.
        prompts: text or tokens that some models read in front of everything, for example demonstrations; keys
            ``strong``, ``expert``, ``anchor``, or ``small`` for the last two.
        tokenizer: of the strong model; needed for texts in ``prompts`` if ``strong`` is a loaded model.
        small_tokenizers: one for each pair, if the ids of its tokens differ and the models were given loaded.
        shared: run adapters and their base in one batch.
        compile_models: compile each model with ``torch.compile``; use with ``cache_implementation="static"``.
        **options: passed on to ``from_pretrained``, for example ``dtype`` or ``device_map``.

    Raises:
        UsageError: if the list of experts is empty, a setting is out of range, or models do not fit each other.
        BadArtefact: if a folder or id holds no model.
    """

    config_class = WeakToStrongConfig
    main_input_name = "input_ids"
    base_model_prefix = "weak_to_strong"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _is_stateful = False

    def __init__(
        self,
        strong: Source,
        experts: Sequence[Any],
        rule: str = "dynamic",
        settings: Mapping[str, Any] | None = None,
        prompts: Mapping[str, str | Sequence[int]] | None = None,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        small_tokenizers: Sequence[Any] = (),
        shared: bool = True,
        compile_models: bool = False,
        **options: Any,
    ) -> None:
        found, parsed = find_rule(rule, settings)
        pairs = check_pairs(experts)
        if isinstance(strong, Mapping):
            raise UsageError("the strong model is a task sum", "give one model")
        big = load_model(strong, "strong model", **options)
        known: dict[str, Any] = {} if isinstance(strong, nn.Module) else {str(name_of(strong)): big}
        loaded = [load_pair(expert, anchor, known, **options) for expert, anchor in pairs]
        # An adapter that is loaded later wraps the anchor of earlier pairs too.
        loaded_members = [(e.member, _wrapped(a.member, known)) for e, a in loaded]
        own = load_tokenizer(tokenizer if tokenizer is not None else strong)
        given = {} if prompts is None else dict(prompts)
        tokens = _prompt_tokens(given, own)
        core = Member(big).core
        super().__init__(
            WeakToStrongConfig(
                strong=name_of(strong),
                experts=[[e.reference, a.reference] for e, a in loaded],
                rule=rule,
                settings=dump_config(parsed),
                prompts={k: v if isinstance(v, str) else list(v) for k, v in given.items()},
                shared=shared,
                vocab_size=core.config.get_text_config(decoder=True).vocab_size,
                pad_token_id=core.generation_config.pad_token_id if core.generation_config else None,
            )
        )
        self.rule, self.rule_config = found, parsed
        members = [Member(big, prompt=tokens["strong"])]
        members += [Member(e.model, e.adapter, tokens["expert"]) for e, _ in loaded_members]
        members += [Member(a.model, a.adapter, tokens["anchor"]) for _, a in loaded_members]
        self.count = len(pairs)
        self.passes, self.where = plan_passes(members, shared)
        self.models = nn.ModuleList({id(m.model): m.model for m in members}.values())
        self.names = [
            "strong model",
            *(f"expert {i}" for i in range(self.count)),
            *(f"anchor {i}" for i in range(self.count)),
        ]
        readers = [*(load_tokenizer(t) for t in small_tokenizers)] or [load_tokenizer(e) for e, _ in pairs]
        per_pair = [r if r is not None else load_tokenizer(a) for r, (_, a) in zip(readers, pairs, strict=True)]
        sizes = [m.core.config.get_text_config(decoder=True).vocab_size for m in members]
        self.vocabulary = share_vocabulary(sizes[0], sizes[1:], own, per_pair * 2)
        self.generation_config = self._united_generation(core, members, own, per_pair)
        self.eval()
        if compile_models:
            for one in self.passes:
                one.forward = torch.compile(one.model)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *args: Any, **options: Any) -> WeakToStrong:  # type: ignore[override]
        """Load a fusion that :meth:`save_pretrained` wrote, and the models that it names.

        Args:
            folder: folder of the small JSON.
            **options: passed on to the ``from_pretrained`` of each model.

        Raises:
            BadArtefact: if the folder holds no fusion, or a model that it names is gone.
        """
        config = WeakToStrongConfig.read(folder)
        made = cls(
            config.strong,
            [tuple(pair) for pair in config.experts],
            rule=config.rule,
            settings=config.settings,
            prompts=config.prompts,
            shared=config.shared,
            **options,
        )
        if (Path(folder) / "generation_config.json").is_file():
            made.generation_config = GenerationConfig.from_pretrained(str(folder))
        return made

    def save_pretrained(self, folder: str | Path, *args: Any, **options: Any) -> None:  # type: ignore[override]
        """Write ``config.json`` and ``generation_config.json``; the models stay where they are.

        Raises:
            UsageError: if a model was given loaded and has no id or folder to name.
        """
        refs = [("strong model", self.config.strong)]
        refs += [(f"expert {i} or its anchor", r) for i, pair in enumerate(self.config.experts) for r in pair]
        for name, reference in refs:
            if reference is None:
                raise UsageError(f"the {name} was given as a loaded model", "save it and give its folder instead")
        self.config.write(folder)
        self.generation_config.save_pretrained(str(folder))

    @property
    def device(self) -> torch.device:
        """Device of the strong model."""
        return next(self.passes[self.where[0][0]].model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the strong model's weights."""
        return next(self.passes[self.where[0][0]].model.parameters()).dtype

    def get_input_embeddings(self) -> nn.Module:
        """Those of the strong model."""
        return self.passes[self.where[0][0]].model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """Those of the strong model."""
        return self.passes[self.where[0][0]].model.get_output_embeddings()

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: each model ties its own."""

    def can_generate(self) -> bool:  # type: ignore[override]
        """True."""
        return True

    def new_cache(self, length: int | None = None) -> FusedCache:
        """An empty cache for all models; of a fixed length if one is given."""
        return FusedCache([one.new_cache(length) for one in self.passes], [one.parts for one in self.passes])

    def forward(
        self,
        input_ids: Int[Tensor, "b t"],
        attention_mask: Int[Tensor, "b s"] | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        labels: Int[Tensor, "b t"] | None = None,
        small_input_ids: Int[Tensor, "b w"] | None = None,
        small_attention_mask: Int[Tensor, "b w"] | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> FusedOutput:
        """Fused logits of the next token at each position.

        Args:
            input_ids: new tokens, in the strong model's ids.
            attention_mask: over all tokens so far, 0 for padding on the left.
            past_key_values: cache of earlier tokens.
            use_cache: return a cache; by default only if one is given.
            logits_to_keep: how many last positions are wanted, 0 for all, or the positions.
            labels: tokens to predict, -100 for those that do not count.
            small_input_ids: what the small models read instead of the first ``input_ids``.
            small_attention_mask: its attention mask.

        Returns:
            Logits in float32, the cache, the weights of the experts, and the loss if there are labels.

        Raises:
            WeightgenError: if a model returns a number that is none, or memory runs out.
            UsageError: if the cache is none of ours, or a token does not exist in a small model.
        """
        cache = past_key_values
        if cache is None and use_cache:
            cache = self.new_cache()
        if cache is not None and not isinstance(cache, FusedCache):
            raise UsageError(f"the cache is a {type(cache).__name__}", "leave it out, or make one with new_cache()")
        length = input_ids.shape[1]
        wanted = logits_to_keep if isinstance(logits_to_keep, int) and labels is None else 0
        keep = length if wanted == 0 else min(wanted, length)
        if small_input_ids is not None and (cache is None or (cache.seen == 0 and keep != 1)):
            raise UsageError(
                "small_input_ids come with a call for more than the next token", "use generate with a cache"
            )
        with explain_memory(f"decoding {input_ids.shape[0]} rows"):
            read = length if self.rule.needs_evidence and small_input_ids is None else keep
            raw = [
                self.run_pass(
                    i, input_ids, attention_mask, cache, read if i else keep, small_input_ids, small_attention_mask
                )
                for i in range(len(self.passes))
            ]
            logits, alphas = self.fuse_raw(raw, input_ids, attention_mask, cache, keep)
        if isinstance(logits_to_keep, Tensor):
            logits, alphas = logits[:, logits_to_keep], alphas[:, logits_to_keep]
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return FusedOutput(loss=loss, logits=logits, past_key_values=cache, alphas=alphas)  # type: ignore[arg-type]

    def run_pass(
        self,
        index: int,
        ids: Int[Tensor, "b t"],
        mask: Int[Tensor, "b s"] | None,
        cache: FusedCache | None,
        keep: int,
        small_ids: Int[Tensor, "b w"] | None = None,
        small_mask: Int[Tensor, "b w"] | None = None,
    ) -> list[Float[Tensor, "b n v"]]:
        """Logits of one pass; the caller has to count the tokens as seen."""
        one = self.passes[index]
        slot = next(i for i, (place, _) in enumerate(self.where) if place == index)
        starts = cache is None or cache.seen == 0
        replaces = slot > 0 and starts and small_ids is not None
        own_ids = ids if slot == 0 else self.vocabulary.to_small(slot - 1, ids)
        if replaces and small_ids is not None:
            own_ids = small_ids
        own = None if cache is None else cache.own[index]
        if starts and (one.prompt or replaces):
            given = (small_ids, small_mask) if replaces else (None, None)
            own = one.start(ids.shape[0], ids.device, *given, seen=ids.shape[1])
            if cache is not None:
                cache.own[index] = own
        logits = one.run(own_ids, mask, own, None if cache is None else cache.caches[index], keep, starts)
        return [x.to(self.device) for x in logits]

    def fuse_raw(
        self,
        raw: Sequence[Sequence[Float[Tensor, "b _ _"]]],
        ids: Int[Tensor, "b t"],
        mask: Int[Tensor, "b s"] | None,
        cache: FusedCache | None,
        keep: int,
    ) -> tuple[Float[Tensor, "b m v"], Float[Tensor, "b m k"]]:
        """Fuse the logits of all passes, and count ``ids`` as seen."""
        strong, *small = (raw[i][part] for i, part in self.where)
        strong = strong[:, -keep:]
        self._check(strong, [x[:, -keep:] for x in small])
        common = [self.vocabulary.of_small(i, x) for i, x in enumerate(small)]
        experts, anchors = common[: self.count], common[self.count :]
        evidence = None
        if self.rule.needs_evidence:
            places = self.vocabulary.common_index(ids)
            evidence = extend_evidence(experts, anchors, places, mask, cache)[:, -keep:]
        base = self.vocabulary.of_strong(strong)
        fused, alphas = apply_rule(
            self.rule,
            self.rule_config,
            base,
            [x[:, -keep:] for x in experts],
            [x[:, -keep:] for x in anchors],
            evidence,
        )
        if cache is not None:
            cache.seen += ids.shape[1]
            cache.alphas = alphas if cache.alphas is None else torch.cat([cache.alphas, alphas], dim=1)
        return self.vocabulary.merge(strong, fused), alphas

    def _check(self, strong: Tensor, small: Sequence[Tensor]) -> None:
        """The greatest logit of a position is a number unless one is none or infinite, or all are forbidden."""
        sums = [x.amax(-1).float() for x in (strong, *small)]
        if all(bool(torch.isfinite(x).all().item()) for x in sums):
            return
        name = next(n for n, x in zip(self.names, sums, strict=True) if not bool(torch.isfinite(x).all().item()))
        raise WeightgenError(
            f"the {name} returned logits that are no numbers", "check its weights and its dtype; float16 may overflow"
        )

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False:
            return
        static = generation_config.cache_implementation == "static"
        longest = args[-1] if args and isinstance(args[-1], int) else kwargs.get("max_cache_length", 0)
        own = model_kwargs.get("small_input_ids")
        extra = 0 if own is None else own.shape[1]
        model_kwargs["past_key_values"] = self.new_cache(int(longest) + extra + 1 if static else None)

    def _united_generation(
        self,
        core: PreTrainedModel,
        members: Sequence[Member],
        own: PreTrainedTokenizerBase | None,
        readers: Sequence[PreTrainedTokenizerBase | None],
    ) -> GenerationConfig:
        """Settings of the strong model; a token that ends the text for any model ends it here."""
        settings = copy.deepcopy(core.generation_config) if core.generation_config else GenerationConfig()
        ends = _ends(core) + ([own.eos_token_id] if own is not None else [])
        for slot, member in enumerate(members[1:]):
            table = self.vocabulary.inputs[slot]
            for end in _ends(member.core):
                found = [end] if table is None else (table == end).nonzero().flatten().tolist()
                ends += [token for token in found if token < self.vocabulary.size]
        for reader in readers:
            if reader is not None and own is not None and reader.eos_token is not None:
                ends.append(own.get_vocab().get(str(reader.eos_token)))
        united = list(dict.fromkeys(end for end in ends if end is not None))
        settings.eos_token_id = united if len(united) > 1 else united[0] if united else None
        if settings.pad_token_id is None and united:
            settings.pad_token_id = united[0]
        return settings


def _ends(model: PreTrainedModel) -> list[int]:
    found = model.generation_config.eos_token_id if model.generation_config else None
    found = model.config.get_text_config(decoder=True).eos_token_id if found is None else found
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def _wrapped(member: Member, known: Mapping[str, Any]) -> Member:
    for model in known.values():
        if hasattr(model, "peft_config") and model is not member.model and model.get_base_model() is member.model:
            return Member(model, None, member.prompt)
    return member


def _prompt_tokens(
    prompts: Mapping[str, str | Sequence[int]], tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, tuple[int, ...]]:
    if unknown := sorted(set(prompts) - set(PROMPT_ROLES)):
        raise UsageError(f"there is no prompt for {unknown[0]!r}", f"choose from: {', '.join(PROMPT_ROLES)}")
    tokens: dict[str, tuple[int, ...]] = {}
    for role, value in prompts.items():
        if isinstance(value, str):
            if tokenizer is None:
                raise UsageError(f"the prompt for {role} is a text", "give the tokenizer, or tokens")
            value = tokenizer.encode(value)
        tokens[role] = tuple(int(token) for token in value)
    small = tokens.get("small", ())
    return {
        "strong": tokens.get("strong", ()),
        "expert": tokens.get("expert", small),
        "anchor": tokens.get("anchor", small),
    }
