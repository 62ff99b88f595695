-- job_submit.lua for sites that take VM requests from --comment without the plugin: makes vmbatch-remoteshell the
-- script's shell, so that `sbatch --comment=vm=IMAGE` needs no change of the script. Only batch scripts can be helped:
-- an srun or salloc with such a comment is refused here with a sentence.

local shell = "@bin@/vmbatch-remoteshell"

local function wanted(text)
	return text ~= nil and (" " .. text):find("%svm=%S") ~= nil
end

function slurm_job_submit(job, partitions, uid)
	if not wanted(job.comment) then
		return slurm.SUCCESS
	end
	if job.script == nil then
		slurm.log_user("vmbatch: --comment=vm=... works for batch scripts only; use sbatch")
		return slurm.ERROR
	end
	local first, rest = job.script:match("^#!%s*([^\n]*)(.*)$")
	if first == nil then
		slurm.log_user("vmbatch: the script has no #! line")
		return slurm.ERROR
	end
	if first:sub(1, #shell) ~= shell then
		job.script = "#!" .. shell .. " " .. first .. rest
	end
	return slurm.SUCCESS
end

function slurm_job_modify(job, record, partitions, uid)
	if wanted(job.comment) and not wanted(record.comment) then
		slurm.log_user("vmbatch: a VM is asked for when a job is submitted, not later")
		return slurm.ERROR
	end
	return slurm.SUCCESS
end

return slurm.SUCCESS
