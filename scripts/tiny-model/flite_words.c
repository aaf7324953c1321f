/* flite with word timings, for engines.py.
 *
 * flite_words_init() registers the voices 0 slt, 1 rms, 2 awb, 3 kal16. flite_words_synth() speaks `text` and writes at
 * most `max_samples` samples to `out` and, for each of at most `max_tokens` whitespace-separated tokens, its end in seconds
 * to `ends` (-1 if it is silent). It returns the number of samples, or -1. */
#include <flite/flite.h>
#include <string.h>

cst_voice *register_cmu_us_slt(const char *);
cst_voice *register_cmu_us_rms(const char *);
cst_voice *register_cmu_us_awb(const char *);
cst_voice *register_cmu_us_kal16(const char *);

enum { KAL16 = 3 };
static cst_voice *voices[4];

void flite_words_init(void) {
    flite_init();
    voices[0] = register_cmu_us_slt(NULL);
    voices[1] = register_cmu_us_rms(NULL);
    voices[2] = register_cmu_us_awb(NULL);
    voices[KAL16] = register_cmu_us_kal16(NULL);
}

/* The end of a word: of the last segment of its last syllable; `before` if it has none. */
static float word_end(const cst_item *word, float before) {
    const cst_item *item = item_as(word, "SylStructure");
    if (item) item = item_last_daughter(item);
    if (item) item = item_last_daughter(item);
    if (item) item = item_as(item, "Segment");
    return item ? item_feat_float(item, "end") : before;
}

int flite_words_synth(int voice, const char *text, float stretch, float f0_factor, short *out, int max_samples,
                      float *ends, int max_tokens, int *n_tokens, int *sample_rate) {
    cst_features *features = voices[voice]->features;
    feat_set_float(features, "duration_stretch", stretch);
    if (voice == KAL16) {
        feat_set_float(features, "int_f0_target_mean", 95.0f * f0_factor);
        feat_set_float(features, "int_f0_target_stddev", 11.0f * f0_factor);
    } else {
        feat_set_float(features, "f0_shift", f0_factor);
    }
    cst_utterance *utterance = flite_synth_text(text, voices[voice]);
    if (!utterance) return -1;
    const cst_wave *wave = utt_wave(utterance);
    int n = wave->num_samples < max_samples ? wave->num_samples : max_samples;
    memcpy(out, wave->samples, n * sizeof(short));
    *sample_rate = wave->sample_rate;

    int k = 0;
    for (const cst_item *token = relation_head(utt_relation(utterance, "Token")); token; token = item_next(token)) {
        float end = -1;
        for (const cst_item *word = item_daughter(token); word; word = item_next(word)) end = word_end(word, end);
        if (k < max_tokens) ends[k] = end;
        k++;
    }
    *n_tokens = k;
    delete_utterance(utterance);
    return n;
}
