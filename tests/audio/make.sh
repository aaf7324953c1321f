#!/bin/sh
# Makes the fixtures of tests/audio_input from one synthetic signal, a linear sweep from 200 Hz to 6 kHz in one
# second at half of full scale; the test computes the same signal and compares. Needs ffmpeg with libmp3lame,
# libvorbis and libopus. Run inside this folder.
set -eu

sweep() { # sweep RATE SECONDS OUTPUT-OPTIONS...
    rate=$1 seconds=$2
    shift 2
    ffmpeg -hide_banner -loglevel error -y -f lavfi \
        -i "aevalsrc=0.5*sin(2*PI*(200*t+2900*t*t)):s=$rate:d=$seconds" \
        -map_metadata -1 -fflags +bitexact -flags:a +bitexact "$@"
}

sweep 16000 1 -c:a libmp3lame -b:a 64k -write_xing 1 -id3v2_version 3 -metadata title=sweep tagged.mp3
sweep 16000 1 -c:a libmp3lame -b:a 64k -write_xing 0 -id3v2_version 0 bare.mp3
sweep 16000 0.5 -c:a mp2 -b:a 96k sweep.mp2
sweep 44100 0.5 -af 'pan=stereo|c0=c0|c1=c0' -c:a aac -b:a 96k sweep.aac
sweep 16000 0.125 -c:a flac sweep.flac
sweep 44100 0.05 -af 'pan=stereo|c0=c0|c1=c0' -c:a flac stereo.flac
sweep 16000 0.125 -c:a flac -f ogg flac.ogg
sweep 44100 1 -af 'pan=stereo|c0=c0|c1=c0' -c:a libvorbis -q:a 3 vorbis.ogg
sweep 48000 1 -c:a libopus -b:a 48k mono.opus
sweep 48000 0.5 -af 'pan=stereo|c0=c0|c1=c0' -c:a libopus -b:a 96k stereo.opus
sweep 48000 0.5 -af 'pan=5.1|c0=c0' -c:a libopus -b:a 48k surround.opus
sweep 48000 1 -c:a libopus -b:a 48k opus.webm
sweep 48000 0.5 -c:a libopus -b:a 48k -strict experimental opus.mp4
sweep 44100 0.4 -c:a aac -b:a 96k end.m4a
sweep 44100 0.5 -c:a aac -b:a 96k -movflags +faststart start.m4a
sweep 16000 0.125 -c:a alac -movflags +faststart alac.m4a
sweep 16000 0.125 -c:a pcm_s16be sweep.aiff
sweep 16000 0.125 -c:a pcm_s16le sweep.caf
sweep 16000 0.125 -c:a flac sweep.mkv
sweep 16000 0.25 -c:a pcm_mulaw mulaw.wav
sweep 16000 0.25 -c:a pcm_alaw alaw.wav
sweep 16000 0.5 -c:a adpcm_ima_wav adpcm_ima.wav
sweep 16000 0.5 -c:a adpcm_ms adpcm_ms.wav
sweep 44100 0.025 -af 'pan=stereo|c0=c0|c1=c0' -c:a pcm_s24le extensible.wav
sweep 44100 0.1 -c:a ac3 -b:a 64k ac3.mkv
# A film without sound.
ffmpeg -hide_banner -loglevel error -y -f lavfi -i color=size=16x16:rate=5:duration=1 \
    -map_metadata -1 -fflags +bitexact -flags:v +bitexact -c:v mpeg4 silent.mp4
