/* An empty libpcaudio.so.0: espeak-ng links to it for playing sound, which is never asked for here. */
typedef struct audio_object audio_object;

audio_object *create_audio_device_object(const char *device, const char *application, const char *description) {
    (void)device, (void)application, (void)description;
    return 0;
}
int audio_object_open(audio_object *object, int format, unsigned rate, unsigned char channels) {
    (void)object, (void)format, (void)rate, (void)channels;
    return -1;
}
int audio_object_write(audio_object *object, const void *data, unsigned long bytes) {
    (void)object, (void)data, (void)bytes;
    return -1;
}
const char *audio_object_strerror(audio_object *object, int error) {
    (void)object, (void)error;
    return "";
}
unsigned audio_object_get_latency(audio_object *object) { return (void)object, 0; }
int audio_object_drain(audio_object *object) { return (void)object, 0; }
int audio_object_flush(audio_object *object) { return (void)object, 0; }
void audio_object_close(audio_object *object) { (void)object; }
void audio_object_destroy(audio_object *object) { (void)object; }
