# Sourced by the scripts for --help: show_help FILE… prints the comments at the beginning of the files and exits.

show_help() {
    awk 'FNR == 1 { head = 1 } /^#!/ { next } !/^#/ { head = 0 } head { sub(/^# ?/, ""); print }' "$@"
    exit
}
