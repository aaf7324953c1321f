<#
.SYNOPSIS
Fetches the model from Hugging Face, verifies it and resumes what was interrupted.

.DESCRIPTION
Needs curl.exe, which comes with Windows 10 and later. A file gets its name only after its size and SHA-256 are those that
the repository states. HF_TOKEN is used if it is set; curl does not pass it on to other servers. HF_ENDPOINT is the server,
https://huggingface.co unless set.

.EXAMPLE
scripts\download_model.ps1 -Dir voxtral-model
#>
[CmdletBinding()]
param(
    # Where to put the model.
    [string]$Dir = 'voxtral-model',
    # Branch, tag or commit of the repository.
    [ValidatePattern('^[A-Za-z0-9._/-]+$')]
    [string]$Revision = 'main'
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'

$repository = 'mistralai/Voxtral-Mini-4B-Realtime-2602'
# The weights last: without them a directory is no model.
$files = 'params.json', 'tekken.json', 'consolidated.safetensors'
$maxTries = 6
$endpoint = 'https://huggingface.co'
if ($env:HF_ENDPOINT) { $endpoint = $env:HF_ENDPOINT.TrimEnd('/') }
if ($endpoint -notmatch '^https?://.') { throw 'HF_ENDPOINT must begin with http:// or https://' }
if ($env:HF_TOKEN -and $env:HF_TOKEN -notmatch '^[A-Za-z0-9._~+/=-]+$') {
    throw 'HF_TOKEN has characters that no token has'
}
if (-not (Get-Command curl.exe -ErrorAction SilentlyContinue)) { throw 'curl.exe was not found' }

# The arguments of one try go to curl as a config on stdin, so that no process list shows the token.
function Invoke-Download([string]$Url, [string]$File) {
    $config = @(
        "url = `"$Url`""
        "output = `"$($File.Replace('\', '/'))`""
        'continue-at = -'
        'fail'
        'location'
        'globoff'
        'proto = "=http,https"'
        'connect-timeout = 30'
        'speed-limit = 1000'
        'speed-time = 60'
        'progress-bar'
    )
    if ($env:HF_TOKEN) { $config += "header = `"Authorization: Bearer $env:HF_TOKEN`"" }
    $config | & curl.exe --config '-'
    return $LASTEXITCODE
}

# Tries until curl is content.
function Save-File([string]$Url, [string]$File) {
    $pause = 2
    for ($try = 1; $try -le $maxTries; $try++) {
        $status = Invoke-Download $Url $File
        if ($status -eq 0) { return }
        # 22: the server refuses. 33: it cannot continue a file.
        if ($status -eq 22) { throw "$Url was refused: does the revision exist, and is HF_TOKEN needed?" }
        if ($status -eq 33) { Remove-Item -LiteralPath $File -Force }
        if ($try -lt $maxTries) {
            Write-Warning "${Url}: curl ended with status $status; trying again in $pause s"
            Start-Sleep -Seconds $pause
            $pause *= 2
        }
    }
    throw "${Url}: gave up after $maxTries tries. What has been downloaded is kept: start again to continue"
}

# What the repository says of a file: its size and, if it is in Git LFS, its SHA-256; else its content.
function Get-Description([string]$Name, [string]$Raw) {
    if (Test-Path -LiteralPath $Raw) { Remove-Item -LiteralPath $Raw -Force }
    Save-File "$endpoint/$repository/raw/$Revision/$Name" $Raw
    $size = (Get-Item -LiteralPath $Raw).Length
    if ($size -lt 1024) {
        $text = Get-Content -LiteralPath $Raw -Raw
        if ($text -match '(?m)^oid sha256:(?<sha>[0-9a-f]{64})\r?$' ) {
            $sha = $Matches['sha']
            if ($text -match '(?m)^size (?<size>[1-9][0-9]{0,15})\r?$') {
                return @{ Size = [long]$Matches['size']; Sha256 = $sha }
            }
        }
    }
    if ($Name -notlike '*.json') { throw "${Name}: no Git LFS pointer, without which it cannot be verified" }
    try { Get-Content -LiteralPath $Raw -Raw -Encoding UTF8 | ConvertFrom-Json | Out-Null }
    catch { throw "${Name}: what the server sent is not JSON" }
    return @{ Size = $size; Sha256 = (Get-FileHash -LiteralPath $Raw -Algorithm SHA256).Hash.ToLowerInvariant() }
}

function Test-File([string]$File, $Description) {
    if (-not (Test-Path -LiteralPath $File -PathType Leaf)) { return $false }
    if ((Get-Item -LiteralPath $File).Length -ne $Description.Size) { return $false }
    return (Get-FileHash -LiteralPath $File -Algorithm SHA256).Hash -eq $Description.Sha256
}

$folder = New-Item -ItemType Directory -Path $Dir -Force
$raw = Join-Path $folder.FullName '.raw'
try {
    foreach ($name in $files) {
        $target = Join-Path $folder.FullName $name
        $part = "$target.part"
        $description = Get-Description $name $raw
        if (Test-File $target $description) {
            Write-Output "${target}: already there, verified"
            continue
        }
        if (Test-Path -LiteralPath $target) {
            Write-Warning "${target}: not what the repository has; moved to $target.bad"
            Move-Item -LiteralPath $target -Destination "$target.bad" -Force
        }
        Write-Output "${target}: downloading $($description.Size) bytes"
        # A part that is whole already would be asked for beyond its end.
        if (-not (Test-File $part $description)) {
            Save-File "$endpoint/$repository/resolve/$Revision/$name" $part
        }
        if (-not (Test-File $part $description)) {
            Remove-Item -LiteralPath $part -Force
            throw "${name}: not the right file; it has been removed"
        }
        Move-Item -LiteralPath $part -Destination $target
        Write-Output "${target}: verified"
    }
}
finally {
    if (Test-Path -LiteralPath $raw) { Remove-Item -LiteralPath $raw -Force }
}
